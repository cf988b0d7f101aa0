"""Pictures as model inputs: read batch by batch, those read last kept within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.cores import available_cores
from edgelora.errors import BundleError, DataError
from edgelora.manifest import TensorSpec
from edgelora.media.augmentation import Augmentation, Variation
from edgelora.media.images import ImageSettings, Picture, RawPicture, pillow, read_picture
from edgelora.media.placement import Placement
from edgelora.objectives import Array, Feeds
from edgelora.records import first_of

KEPT = 64 << 20  # bytes of decoded pictures


class ImageEncoder:
    """Makes the graph input of pictures, as the manifest's `preprocessing` of kind "image" says.

    Raises:
        EdgeLoraError: the package that reads pictures is missing. BundleError: malformed settings, or ones that do not
            suit the graphs' inputs.
    """

    takes = "pictures"

    def __init__(self, folder: Path, preprocessing: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> None:
        pillow()
        self.settings = ImageSettings.read(preprocessing, str(folder))
        spec = next((spec for spec in inputs if spec.name == self.settings.input), None)
        if spec is None or len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise BundleError(f"{folder}: pictures are the input {self.settings.input!r}, and the graphs take {names}")
        shape = self.settings.shape
        fits = len(spec.shape) == 1 + len(shape) and all(
            d == s or isinstance(d, str) for d, s in zip(spec.shape[1:], shape, strict=True)
        )
        if not fits:
            raise BundleError(f"{folder}: pictures of {shape} do not fit the input {spec.name} of {spec.shape}")
        self.spec = spec

    def inputs(self, raw: Sequence[Any], augmentation: Augmentation | None = None) -> ImageInputs:
        """The inputs of pictures: files, bytes or arrays; read when they are asked for.

        Raises:
            DataError: one is none of these.
        """
        wrong = [one for one in raw if not isinstance(one, str | Path | bytes | np.ndarray)]
        if wrong:
            raise DataError(f"pictures are paths, bytes or uint8 arrays; {wrong[0]!r} is none")
        return ImageInputs(self, list(raw), augmentation)


class ImageInputs:
    """Pictures of one data set; with an augmentation those of an epoch (`of_epoch`) are varied."""

    def __init__(
        self, encoder: ImageEncoder, pictures: Sequence[RawPicture], augmentation: Augmentation | None = None
    ) -> None:
        self.encoder, self.pictures, self.augmentation = encoder, pictures, augmentation
        self.epoch: int | None = None
        self._kept = _Kept()
        self._sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    def of_epoch(self, epoch: int) -> ImageInputs:
        if self.augmentation is None:
            return self
        varied = copy(self)
        varied.epoch = epoch
        return varied

    def feeds(self, rows: NDArray[np.int64]) -> Feeds:
        """The graph input of these pictures.

        Raises:
            DataError: one cannot be read; names it.
        """
        settings, spec = self.encoder.settings, self.encoder.spec
        out: Array = np.empty((len(rows), *settings.shape), spec.dtype)

        def put(place: int) -> None:
            row = int(rows[place])
            picture, variation = self.picture(row), self._variation(row)
            placement = settings.placement(picture)
            if variation is not None:
                placement = variation.place(placement)
            pixels = placement.warp(picture.pixels, settings.fill, settings.resample, picture.extent)
            settings.put(pixels if variation is None else variation.recolor(pixels), out[place])

        _in_threads(put, range(len(rows)))
        return {spec.name: out}

    def placement(self, row: int) -> Placement:
        """Where a picture lies in the input; an epoch's way of it where that is varied."""
        size = self._sizes.get(row)
        if size is None:
            picture = self.picture(row)
            size = picture.height, picture.width
        settings, variation = self.encoder.settings, self._variation(row)
        placement = Placement.fitted(size, settings.size, settings.fit, settings.share)
        return placement if variation is None else variation.place(placement)

    def examine(self) -> None:
        """Read all pictures once.

        Raises:
            DataError: those that cannot be read, the first of them by name.
        """
        problems: list[str | None] = [None] * len(self)

        def look(row: int) -> None:
            try:
                self.picture(row)
            except DataError as error:
                problems[row] = str(error)

        _in_threads(look, range(len(self)))
        if found := [problem for problem in problems if problem is not None]:
            raise DataError(first_of(found, "pictures that cannot be read"))

    def picture(self, row: int) -> Picture:
        """A picture, decoded no larger than is of use. Raises DataError."""
        picture = self._kept.get(row)
        if picture is None:
            settings, raw = self.encoder.settings, self.pictures[row]
            picture = read_picture(raw, settings.channels, settings.size)
            self._kept.put(row, picture)
            self._sizes[row] = picture.height, picture.width
        return picture

    def _variation(self, row: int) -> Variation | None:
        if self.augmentation is None or self.epoch is None:
            return None
        return self.augmentation.variation(self.epoch, row)


class _Kept:
    """The pictures that were used last, of `KEPT` bytes in all; several threads may ask."""

    def __init__(self) -> None:
        self._lock, self._bytes = Lock(), 0
        self._pictures: OrderedDict[int, Picture] = OrderedDict()

    def get(self, row: int) -> Picture | None:
        with self._lock:
            if row in self._pictures:
                self._pictures.move_to_end(row)
            return self._pictures.get(row)

    def put(self, row: int, picture: Picture) -> None:
        with self._lock:
            if row in self._pictures or picture.pixels.nbytes > KEPT:
                return
            self._pictures[row] = picture
            self._bytes += picture.pixels.nbytes
            while self._bytes > KEPT:
                self._bytes -= self._pictures.popitem(last=False)[1].pixels.nbytes


def _in_threads(work: Any, places: range) -> None:
    """`work` for every place, on all cores; threads of a call of their own, for a process may have been forked."""
    cores = min(available_cores(), len(places))
    if cores < 2:
        for place in places:
            work(place)
        return
    with ThreadPoolExecutor(cores, "edgelora-pictures") as pool:
        for _ in pool.map(work, places):
            pass
