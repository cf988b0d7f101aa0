"""Pictures from files, bytes or arrays to uint8 pixels, and what a model wants them as."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import BundleError, DataError, EdgeLoraError
from edgelora.media.placement import FITS, RESAMPLES, Pixels, Placement

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 80_000_000
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_MOST_SIDE = 1 << 14  # of a model's input
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
_LARGEST = 1e15
_SPARE = 2  # a picture is decoded to so many times the size that is needed, if it is larger

RawPicture = str | Path | bytes | NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """A picture, upright: `pixels` `[h, w, channels]` may be fewer than its own `height` and `width`.

    `extent` are the rows and columns of them that it takes: less than h and w where the last pixels are not full.
    """

    pixels: Pixels
    height: int
    width: int
    extent: tuple[float, float]


@dataclass(frozen=True)
class ImageSettings:
    """How pictures become a graph input: the manifest's `preprocessing` of kind "image".

    A picture is put into `size` (height, width) by `fit` (`Placement.fitted`; `share` is of "crop"), where nothing is
    has the value `fill`, and is fed as (pixel · `scale` − `mean`) / `std`; mean and std are a number, or one a channel.
    `channels` are 1 (grey) or 3, in the `order` "RGB" or "BGR"; `layout` is "NCHW" or "NHWC".
    """

    input: str
    size: tuple[int, int]
    channels: int = 3
    layout: str = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: str = "stretch"
    share: float = 1.0
    resample: str = "bilinear"
    order: str = "RGB"
    fill: int = 114

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        per_channel = (1, self.channels)
        checks = (
            ("size", "two whole numbers, height and width", len(self.size) == 2 and _sides(self.size)),
            ("channels", "1 or 3", self.channels in (1, 3)),
            ("layout", "NCHW or NHWC", self.layout in ("NCHW", "NHWC")),
            ("scale", "above 0", _positive((self.scale,))),
            ("mean", "a number, or one for each channel", len(self.mean) in per_channel and _finite(self.mean)),
            ("std", "above 0, one or one for each channel", len(self.std) in per_channel and _positive(self.std)),
            ("fit", f"one of {', '.join(FITS)}", self.fit in FITS),
            ("share", "above 0 and at most 1", 0 < self.share <= 1),
            ("resample", f"one of {', '.join(RESAMPLES)}", self.resample in RESAMPLES),
            ("order", "RGB or BGR", self.order in ("RGB", "BGR")),
            ("fill", "from 0 to 255", 0 <= self.fill <= 255),
        )
        return [f"{name} must be {rule}, not {getattr(self, name)!r}" for name, rule, holds in checks if not holds]

    @classmethod
    def read(cls, preprocessing: Mapping[str, Any], where: str) -> ImageSettings:
        """The settings in a manifest; `where` names it in errors. Fields that are not known are passed over.

        Raises:
            BundleError: a field is missing, malformed or out of range.
        """
        found: dict[str, Any] = {}
        problems: list[str] = []
        for field in fields(cls):
            value: Any = preprocessing.get(field.name, field.default)
            value = tuple(cast("list[Any]", value)) if isinstance(value, list) else value
            if not _FITTING[str(field.type)](value):
                problems.append(
                    f"{field.name} cannot be {value!r}" if field.name in preprocessing else f"no {field.name}"
                )
            found[field.name] = value
        settings = None if problems else cls(**found)
        problems += settings.problems() if settings is not None else []
        if settings is None or problems:
            raise BundleError(f"{where}: preprocessing: {'; '.join(problems)}; convert the model again")
        return settings

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `preprocessing`."""
        tuples = {name: list(getattr(self, name)) for name in ("size", "mean", "std")}
        return {"kind": "image", **asdict(self), **tuples}

    def placement(self, picture: Picture) -> Placement:
        """Where a picture lies in the input."""
        return Placement.fitted((picture.height, picture.width), self.size, self.fit, self.share)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest number that a pixel can become, of all channels."""
        mean, std = np.broadcast_arrays(np.array(self.mean), np.array(self.std))
        return float(((0 - mean) / std).min()), float(((255 * self.scale - mean) / std).max())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one picture in the input."""
        return (self.channels, *self.size) if self.layout == "NCHW" else (*self.size, self.channels)

    def put(self, pixels: Pixels, out: NDArray[Any]) -> None:
        """Write pixels `[height, width, channels]` into `out`, of the shape `shape`, as the model wants them."""
        if self.order == "BGR":
            pixels = pixels[..., ::-1]
        factor = np.float32(self.scale) / np.asarray(self.std, np.float32)
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        if self.layout == "NCHW":
            pixels, factor, shift = pixels.transpose(2, 0, 1), factor[:, None, None], shift[:, None, None]
        if out.dtype == np.float32:
            np.multiply(pixels, factor, out=out, casting="unsafe")
            out -= shift
        else:
            made = pixels * factor - shift
            whole = np.issubdtype(out.dtype, np.integer)
            out[...] = np.clip(np.rint(made), *_limits(out.dtype)) if whole else made


def read_picture(raw: RawPicture, channels: int = 3, least: tuple[int, int] | None = None) -> Picture:
    """A picture of so many channels from a file, the bytes of one, or an array `[h, w]` or `[h, w, channels]` of uint8.

    It is turned upright as its EXIF record says; what is transparent becomes white; of several frames the first is
    taken, of 16 bits the upper 8. With `least` (height, width) a large picture is decoded smaller, at least that size.

    Raises:
        DataError: no such file, none that can be read, or too large; names it.
        EdgeLoraError: the package that reads pictures is missing.
    """
    image_module = pillow()
    name = picture_name(raw)
    if isinstance(raw, np.ndarray):
        if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[2] not in (1, 3, 4)):
            raise DataError(f"{name}: a picture is uint8 [h, w] or [h, w, channels], not {raw.dtype} {raw.shape}")
        if not raw.size:
            raise DataError(f"{name}: has no pixels")
        raw = raw[..., 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
        return _picture(image_module.fromarray(np.ascontiguousarray(raw)), channels, least)
    with opened(raw) as image:
        return _picture(image, channels, least)


def picture_size(path: Path) -> tuple[int, int]:
    """The height and width of the picture in a file, upright, without decoding it. Raises as `read_picture`."""
    with opened(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def opened(raw: str | Path | bytes) -> Generator[Image]:
    """The picture of a file or of the bytes of one, as Pillow has it; what goes wrong is a DataError."""
    image_module, name = pillow(), picture_name(raw)
    try:
        with image_module.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw, formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{name}: has {image.width * image.height:,} pixels, at most {MOST_PIXELS:,} are read")
            if image.mode == "F":
                raise DataError(f"{name}: its pixels are floating-point numbers; save it with 8 or 16 bits")
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except image_module.DecompressionBombError as error:
        raise DataError(f"{name}: has too many pixels, at most {MOST_PIXELS:,} are read") from error
    except image_module.UnidentifiedImageError as error:
        raise DataError(f"{name}: not a picture that can be read ({', '.join(_FORMATS)})") from error
    except Exception as error:  # decoders raise many kinds
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error
        raise DataError(f"{name}: a damaged picture ({error})") from error


def _picture(image: Image, channels: int, least: tuple[int, int] | None) -> Picture:
    from PIL import ImageOps

    turned = image.getexif().get(_ORIENTATION) in _TURNED
    width, height = image.size[::-1] if turned else image.size
    h, w = (height, width) if least is None else (_SPARE * side for side in least)
    across = image.width
    drafted = image.draft(None, (h, w) if turned else (w, h))
    times = 1 if drafted is None else round(across / drafted[1][2])
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB") and (factor := min(image.width // w, image.height // h)) > 1:
        image, times = image.reduce(factor), times * factor
    return Picture(_pixels(image, channels), height, width, (height / times, width / times))


def _pixels(image: Image, channels: int) -> Pixels:
    """uint8 `[h, w, channels]`."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if channels == 1 else "RGB"
    image = image if image.mode == wanted else image.convert(wanted)
    return np.asarray(image).reshape(image.height, image.width, channels)


def picture_name(raw: RawPicture) -> str:
    """How messages name a picture."""
    return str(raw) if isinstance(raw, str | Path) else "a picture of bytes" if isinstance(raw, bytes) else "an array"


def pillow() -> Any:
    """The package that reads pictures.

    Raises:
        EdgeLoraError: it is missing, with the line that installs it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise EdgeLoraError('this takes pictures: pip install "edgelora[vision]"') from error
    return Image


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sides(size: tuple[int, ...]) -> bool:
    return all(0 < side <= _MOST_SIDE for side in size)


def _finite(values: tuple[float, ...]) -> bool:
    return all(abs(value) < _LARGEST for value in values)


def _positive(values: tuple[float, ...]) -> bool:
    return all(1 / _LARGEST < value < _LARGEST for value in values)


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


_FITTING: dict[str, Callable[[Any], bool]] = {  # by annotation
    "str": lambda value: isinstance(value, str),
    "int": _is_whole,
    "float": _is_number,
    "tuple[int, int]": lambda value: isinstance(value, tuple) and all(map(_is_whole, cast("tuple[Any, ...]", value))),
    "tuple[float, ...]": lambda value: isinstance(value, tuple) and all(map(_is_number, cast("tuple[Any]", value))),
}
