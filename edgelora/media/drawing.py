"""Results drawn on pictures: boxes, masks and points with their names, and a caption below.

Colours are those of Okabe and Ito (2008), which people tell apart whatever colours they see; every line has a dark
edge, so that it shows on any ground. Small pictures are enlarged until names can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import EdgeLoraError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
    (240, 228, 66),
)
LEAST_SIDE = 320
"""Pixels that the shorter side has at least when it is drawn on."""
DARK: Colour = (24, 24, 24)
LIGHT: Colour = (255, 255, 255)
_TINT = 0.45
_MOST_ENLARGED = 1 << 12  # pixels that the longer side of a picture is enlarged to at most: one may be a line
_LEAST_LETTERS = 12
_FURTHEST = 4


@dataclass(frozen=True)
class Box:
    """A box by its left, top, right and bottom in the picture's pixels, what it holds, and how sure that is."""

    corners: Rectangle
    label: str
    score: float | None = None


@dataclass(frozen=True)
class Point:
    """A point (x, y) in the picture's pixels, its name, and how sure that is."""

    x: float
    y: float
    label: str
    score: float | None = None


@dataclass(frozen=True)
class Figure:
    """What is drawn. `names` are all that may occur, in their order, which gives each its colour.

    `mask` `[H, W]` holds numbers of `names`; the first is the ground and stays clear, as does what is no number of a
    name.
    """

    names: tuple[str, ...] = ()
    caption: str = ""
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    mask: NDArray[np.integer[Any]] | None = None


def draw(picture: Picture, figure: Figure, longest: int | None = None) -> Picture:
    """The picture `[H, W, 1 or 3]` with the figure on it, `[H', W', 3]`: enlarged if small, with a strip for its
    caption. With `longest` its longer side has so many pixels, and lines and letters the size that suits them.

    Raises:
        EdgeLoraError: Pillow is missing.
    """
    image_module, draw_module, _ = pillow()
    sides = picture.shape[:2]
    factor = max(1.0, min(LEAST_SIDE / min(sides), _MOST_ENLARGED / max(sides)))
    image: Image.Image = image_module.fromarray(colours_of(picture))
    smooth = image_module.Resampling.BICUBIC if factor < 4 else image_module.Resampling.NEAREST
    image = _resized(image, sides, factor, smooth)
    if figure.mask is not None:
        image = image_module.fromarray(_tinted(np.asarray(image), figure.mask, len(figure.names)))
    if longest is not None:
        factor = longest / max(sides)
        image = _resized(image, sides, factor, image_module.Resampling.LANCZOS)
    pen = _Pen(draw_module.Draw(image), image.size, figure.names)
    for box in figure.boxes:
        pen.box(box, factor)
    pen.tags()
    pen.points(figure.points, factor)
    shown = () if figure.mask is None else tuple(figure.names[i] for i in _present(figure.mask, len(figure.names)))
    return _with_strip(np.asarray(image), figure, shown, pen.letters)


def _resized(image: Image.Image, sides: tuple[int, ...], factor: float, resample: Any) -> Image.Image:
    """The image, as large as a picture with these sides that is `factor` times as large."""
    height, width = (max(1, round(side * factor)) for side in sides)
    return image if image.size == (width, height) else image.resize((width, height), resample)


def colour(name: str, names: Sequence[str]) -> Colour:
    """The colour of one of `names`; of another name one that depends on it alone."""
    number = names.index(name) if name in names else sum(name.encode())
    return COLOURS[number % len(COLOURS)]


def colours_of(picture: Picture) -> Picture:
    """A picture `[H, W]` or `[H, W, 1, 3 or 4]` as `[H, W, 3]`."""
    planes = picture[..., None] if picture.ndim == 2 else picture[..., :3]
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def pillow() -> tuple[Any, Any, Any]:
    """Pillow's modules Image, ImageDraw and ImageFont.

    Raises:
        EdgeLoraError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise EdgeLoraError('pictures are drawn with Pillow: pip install "edgelora[vision]"') from error
    return Image, ImageDraw, ImageFont


def letters(height: float) -> Any:
    """Pillow's own font, letters about as high."""
    return pillow()[2].load_default(height)


def shortened(text: str, font: Any, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@dataclass(frozen=True)
class _Tag:
    """A name that waits for its place, of several; `at` is the point that it speaks of."""

    text: str
    colour: Colour
    places: list[tuple[float, float]]
    at: tuple[float, float] | None = None


class _Pen:
    """Draws on one picture, lines and letters to its size; names go where they cover no other."""

    def __init__(self, canvas: ImageDraw.ImageDraw, size: tuple[int, int], names: tuple[str, ...]) -> None:
        self.canvas, self.size, self.names = canvas, size, names
        short = min(size)
        self.line = max(2, round(short / 180))
        self.letters = max(_LEAST_LETTERS, round(short / 24))
        self.font = letters(self.letters)
        self._waiting: list[_Tag] = []
        self._taken: list[Rectangle] = []

    def box(self, box: Box, factor: float) -> None:
        """An outline with a dark edge; its name above it, or inside at the top."""
        own, text = colour(box.label, self.names), _named(box.label, box.score)
        left, top, right, bottom = (side * factor for side in box.corners)
        left, right = sorted(float(np.clip(x, 0, self.size[0] - 1)) for x in (left, right))
        top, bottom = sorted(float(np.clip(y, 0, self.size[1] - 1)) for y in (top, bottom))
        self.canvas.rectangle((left, top, right, bottom), outline=DARK, width=self.line + 2)
        if right - left > 2 and bottom - top > 2:
            self.canvas.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=own, width=self.line)
        width, height = self._extent(text)
        places = [(left, top - height), (left, top), (right - width, bottom - height), (left, bottom)]
        self._waiting.append(_Tag(text, own, places))

    def points(self, points: Sequence[Point], factor: float) -> None:
        """Discs with a light and a dark ring; their names beside them, further away where they are many."""
        radius = self.line * 2
        for point in points:
            x, y, text = point.x * factor, point.y * factor, _named(point.label, point.score)
            self._taken.append((x - radius, y - radius, x + radius, y + radius))
            width, height = self._extent(text)
            places = [
                (x + _beside(side, width, radius + 3 + far * height), y + (step * 1.2 - 0.5) * height)
                for far in range(_FURTHEST)
                for side, step in (
                    (1, 0),
                    (-1, 0),
                    (0, -1 - far),
                    (0, 1 + far),
                    (1, far),
                    (1, -far),
                    (-1, far),
                    (-1, -far),
                )
            ]
            self._waiting.append(_Tag(text, colour(point.label, self.names), places, (x, y)))
        self.tags()
        for point in points:
            x, y, own = point.x * factor, point.y * factor, colour(point.label, self.names)
            for ring, paint in ((radius + 2, DARK), (radius + 1, LIGHT), (radius, own)):
                self.canvas.ellipse((x - ring, y - ring, x + ring, y + ring), fill=paint)

    def tags(self) -> None:
        """The names that wait, each at the first of its places that covers the least of discs and of other names."""
        for tag in self._waiting:
            if not tag.text:
                continue
            width, height = self._extent(tag.text)
            most = (max(self.size[0] - width, 0.0), max(self.size[1] - height, 0.0))
            inside = [(min(max(x, 0.0), most[0]), min(max(y, 0.0), most[1])) for x, y in tag.places]
            areas = [(x, y, x + width, y + height) for x, y in inside]
            area = min(areas, key=lambda one: sum(_overlap(one, other) for other in self._taken))
            self._taken.append(area)
            if tag.at is not None:
                near = (float(np.clip(tag.at[0], area[0], area[2])), float(np.clip(tag.at[1], area[1], area[3])))
                self.canvas.line((*tag.at, *near), fill=DARK, width=self.line)
            self.canvas.rectangle(area, fill=tag.colour)
            self.canvas.text((area[0] + 3, area[1] + height / 2), tag.text, _on(tag.colour), self.font, anchor="lm")
        self._waiting.clear()

    def _extent(self, text: str) -> tuple[float, float]:
        return self.font.getlength(text) + 6, self.letters * 1.3


def _beside(side: int, width: float, gap: float) -> float:
    """Where something of this width begins to the right (1) or left (−1) of a point, or in the middle (0)."""
    return gap if side > 0 else -gap - width if side < 0 else -width / 2


def _named(label: str, score: float | None) -> str:
    return label if score is None else f"{label} {score:.2f}".strip()


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _on(ground: Colour) -> Colour:
    """Dark or light letters, whichever shows better."""
    red, green, blue = ground
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else LIGHT


def _present(mask: NDArray[np.integer[Any]], names: int) -> list[int]:
    return [int(i) for i in np.unique(mask) if 0 <= i < names]


def _tinted(picture: Picture, mask: NDArray[np.integer[Any]], names: int) -> Picture:
    """The picture `[H', W', 3]` with the areas of a mask `[H, W]` in their colours, and lines between areas."""
    height, width = picture.shape[:2]
    rows: NDArray[np.int64] = np.arange(height, dtype=np.int64) * mask.shape[0] // height
    columns: NDArray[np.int64] = np.arange(width, dtype=np.int64) * mask.shape[1] // width
    known = np.where((mask > 0) & (mask < names), mask, 0).astype(np.uint16)
    large = known[rows[:, None], columns[None, :]]
    own = np.asarray(COLOURS, np.uint8)[np.arange(max(names, 1)) % len(COLOURS)]
    shares = np.rint(own * _TINT).astype(np.uint8)
    shares[0] = 0
    paler = np.rint(np.arange(256) * (1 - _TINT)).astype(np.uint8)
    made: Picture = np.where((large > 0)[..., None], paler[picture], picture)
    made += shares[large]
    edge = np.zeros(large.shape, bool)
    down, right = large[1:] != large[:-1], large[:, 1:] != large[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    own[0] = DARK
    made[edge] = own[large[edge]]
    return made


def _with_strip(picture: Picture, figure: Figure, shown: tuple[str, ...], height: int) -> Picture:
    """The picture over a strip with the caption and, of a mask, a legend; as it is without either."""
    image_module, draw_module, _ = pillow()
    font, width = letters(height), picture.shape[1]
    row, square = round(height * 1.5), height
    lines: list[list[tuple[str, Colour | None]]] = [[(figure.caption, None)]] if figure.caption else []
    x = float(width)
    for name in shown:
        need = square * 1.6 + font.getlength(name) + height
        if x + need > width:
            lines.append([])
            x = 0.0
        lines[-1].append((name, LIGHT if name == figure.names[0] else colour(name, figure.names)))
        x += need
    if not lines:
        return picture
    strip = image_module.new("RGB", (width, row * len(lines)), DARK)
    canvas = draw_module.Draw(strip)
    for number, line in enumerate(lines):
        x, middle = height * 0.4, row * (number + 0.5)
        for text, own in line:
            if own is not None:
                corners = (x, middle - square / 2, x + square, middle + square / 2)
                canvas.rectangle(corners, fill=DARK if own == LIGHT else own, outline=LIGHT)
                x += square * 1.4
            fitting = shortened(text, font, width - x)
            canvas.text((x, middle), fitting, fill=LIGHT, font=font, anchor="lm")
            x += font.getlength(fitting) + height
    return np.concatenate([picture, np.asarray(strip)])
