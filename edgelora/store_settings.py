"""What a store keeps at most. The settings lie in the store: they hold for every process that opens it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelora.errors import ConfigError, StoreWarning

SETTINGS_FILE = "settings.json"
_LIMIT = 1 << 16


@dataclass(frozen=True)
class StoreSettings:
    """`keep_versions` is how many versions of an adapter are kept, the current one not counted if it is older than
    those (None: all). `quota` is the bytes of the whole store at most (None: no bound): caches are deleted to keep to
    it, those first that were not used for longest; never adapters.

    Raises:
        ConfigError: values out of range.
    """

    keep_versions: int | None = 16
    quota: int | None = None

    def __post_init__(self) -> None:
        values: dict[str, Any] = asdict(self)
        problems = [
            f"{name} must be a whole number from {least}, or None, not {value!r}"
            for (name, value), least in zip(values.items(), (1, 0), strict=True)
            if value is not None and (type(value) is not int or value < least)
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    def to_bytes(self) -> bytes:
        """The settings file."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> StoreSettings:
        """The settings in a folder; the defaults where there are none, or, with a warning, damaged ones."""
        path = folder / SETTINGS_FILE
        try:
            with path.open("rb") as file:
                return cls(**json.loads(file.read(_LIMIT)))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, RecursionError, ConfigError) as error:
            warnings.warn(f"{path}: not the settings of a store ({error}); the defaults hold", StoreWarning, 2)
            return cls()
