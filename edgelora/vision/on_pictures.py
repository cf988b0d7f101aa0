"""What objectives share whose samples are told in the pixels of their pictures: each is held against its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod

from edgelora.errors import DataError
from edgelora.media.image_inputs import ImageInputs
from edgelora.objectives import OnSamples
from edgelora.records import first_of


class OnPictures(OnSamples, ABC):
    """`wrong` is what samples are called that do not fit their pictures."""

    wrong: str

    @property
    def pictures(self) -> ImageInputs:
        assert isinstance(self.data, ImageInputs)
        return self.data

    def examine(self) -> None:
        super().examine()
        if problems := [problem for row in range(len(self)) for problem in self.problems_of(row)]:
            raise DataError(first_of(problems, self.wrong))

    @abstractmethod
    def problems_of(self, row: int) -> list[str]:
        """What of a sample does not fit its picture."""
