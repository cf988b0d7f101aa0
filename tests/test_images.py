"""Pictures of every kind become the same uint8 pixels, and broken ones an error with their name."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edgelora.errors import BundleError, DataError
from edgelora.media.images import MOST_PIXELS, ImageSettings, read_picture

RED, GREEN = (250, 20, 30), (10, 240, 20)


def colors() -> Image.Image:
    """Red left of green, wider than high."""
    image = Image.new("RGB", (30, 20), RED)
    image.paste(GREEN, (15, 0, 30, 20))
    return image


def coded(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_formats(tmp_path: Path, fmt: str):
    content = coded(colors(), fmt, **({"lossless": True} if fmt == "WEBP" else {}))
    path = tmp_path / "picture"
    path.write_bytes(content)
    for raw in (path, str(path), content, np.asarray(colors())):
        picture = read_picture(raw)
        assert (picture.height, picture.width) == (20, 30) and picture.pixels.dtype == np.uint8
        np.testing.assert_allclose(picture.pixels, np.asarray(colors()), atol=6)
    assert read_picture(content, channels=1).pixels.shape == (20, 30, 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_modes(mode: str):
    image = colors().convert(mode)
    fmt = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    wanted = np.asarray(image.convert("RGB"), int)
    np.testing.assert_allclose(read_picture(coded(image, fmt)).pixels, wanted, atol=6)


def test_what_is_transparent_is_white():
    image = colors().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 10)[:, None].repeat(30, 1)))
    pixels = read_picture(coded(image)).pixels
    assert (pixels[0] == 255).all() and tuple(pixels[-1, 0]) == RED
    palette = colors().quantize(2)
    content = coded(palette, transparency=palette.getpixel((0, 0)))
    assert (read_picture(content).pixels[:, 0] == 255).all()


def test_sixteen_bits_keep_their_upper_eight():
    deep = (np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).astype(np.uint16)
    picture = read_picture(coded(Image.fromarray(deep)))
    np.testing.assert_array_equal(picture.pixels[..., 0], deep >> 8)
    np.testing.assert_array_equal(picture.pixels[..., 0], picture.pixels[..., 2])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("least", [None, (4, 5)])
def test_pictures_are_turned_upright(orientation: int, least: tuple[int, int] | None):
    large = colors().resize((300, 200))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = coded(large, "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    picture = read_picture(content, least=least)
    assert (picture.width, picture.height) == upright.size
    if least is not None:
        assert picture.pixels.shape[0] < picture.height / 4
    shown = np.asarray(Image.fromarray(picture.pixels).resize((10, 10)), int)
    assert np.abs(shown - np.asarray(upright.resize((10, 10)), int)).mean() < 8


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 30), st.integers(1, 30), st.sampled_from(["PNG", "JPEG"]))
def test_a_picture_is_decoded_no_smaller_than_is_needed(h: int, w: int, least_h: int, least_w: int, fmt: str):
    picture = read_picture(coded(colors().resize((w, h)), fmt), least=(least_h, least_w))
    assert (picture.height, picture.width) == (h, w)
    rows, columns = picture.pixels.shape[:2]
    assert rows >= min(h, least_h) and columns >= min(w, least_w) and rows <= h and columns <= w


def bomb() -> bytes:
    """A PNG that says that it has 10^10 pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + coded(colors())[33:]


PNG, JPEG = coded(colors()), coded(colors().resize((300, 200)), "JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture that can be read"),
        (b"text,label\na,b\n", "not a picture that can be read"),
        (PNG[:60], "a damaged picture"),
        (JPEG[: len(JPEG) // 2], "a damaged picture"),
        (PNG[:50] + b"\xff" * 8 + PNG[58:], "a damaged picture"),
        (bomb(), "pixels"),
        (coded(Image.new("L", (10_000, 9_000))), f"90,000,000 pixels, at most {MOST_PIXELS:,} are read"),
        (
            coded(Image.new("F", (3, 3)), "TIFF"),
            "broken.png: its pixels are floating-point numbers; save it with 8 or 16",
        ),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("fmt", "border"), [("PNG", 900), ("JPEG", 896), ("PNG", 107)])
def test_a_picture_that_is_decoded_smaller_lies_where_it_did(fmt: str, border: int):
    """Its last pixel may hold less of it than the others: 1007 pixels in twenties are 50.35."""
    pixels = np.zeros((1007, 1007, 3), np.uint8)
    pixels[:, border:] = 255
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, fmt, quality=95, subsampling=0)
    settings = ImageSettings("image", (24, 24))
    picture = read_picture(content.getvalue(), 3, settings.size)
    assert picture.pixels.shape[1] < 200
    placement = settings.placement(picture)
    light = placement.warp(picture.pixels, 0, "bilinear", picture.extent)[12, :, 0].sum() / 255
    assert light == pytest.approx((1007 - border) / 1007 * 24, abs=0.03)


def test_what_is_no_file_or_no_picture_array_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"missing\.png: no such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}: cannot be read"):
        read_picture(tmp_path)
    for array in (np.zeros((3, 3)), np.zeros((2, 3, 5), np.uint8), np.zeros(3, np.uint8), np.zeros((0, 3), np.uint8)):
        with pytest.raises(DataError, match="an array: "):
            read_picture(array)
    assert read_picture(np.full((4, 5), 9, np.uint8)).pixels.shape == (4, 5, 3)
    assert read_picture(np.full((4, 5, 1), 9, np.uint8), channels=1).pixels.shape == (4, 5, 1)


@given(
    st.sampled_from([PNG, JPEG]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1)
)
def test_any_bytes_are_read_or_refused(content: bytes, changes: list[tuple[float, int]], kept: float):
    spoiled = bytearray(content[: max(1, round(kept * len(content)))])
    for place, value in changes:
        spoiled[int(place * (len(spoiled) - 1))] = value
    try:
        picture = read_picture(bytes(spoiled), least=(8, 8))
    except DataError:
        return
    assert picture.pixels.ndim == 3 and picture.pixels.dtype == np.uint8


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_pixels_are_fed_as_the_settings_say(layout: str, order: str, dtype: str):
    mean, std = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)) if dtype != "uint8" else ((0.0,), (1.0,))
    scale = 1 / 255 if dtype != "uint8" else 1.0
    settings = ImageSettings("x", (4, 5), layout=layout, order=order, scale=scale, mean=mean, std=std)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    out = np.empty(settings.shape, dtype)
    settings.put(pixels, out)
    wanted = (pixels[..., :: -1 if order == "BGR" else 1] * scale - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(out, wanted.transpose(2, 0, 1) if layout == "NCHW" else wanted, atol=1e-5)


def test_settings_are_written_and_read():
    settings = ImageSettings("x", (4, 5), channels=1, layout="NHWC", mean=(0.5,), std=(0.2,), fit="crop", share=0.875)
    assert ImageSettings.read(settings.to_manifest(), "here") == settings
    assert ImageSettings.read({"input": "x", "size": [4, 5], "later": 1}, "here") == ImageSettings("x", (4, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": None}, "input cannot be None"),
        ({"size": [4]}, "size must be two whole numbers"),
        ({"size": [4, 0]}, "size must be"),
        ({"size": [4, 1 << 40]}, "size must be"),
        ({"size": 4}, "size cannot be 4"),
        ({"size": [4, True]}, "size cannot be"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"mean": [0.1, 0.2]}, "mean must be"),
        ({"mean": [float("nan")]}, "mean must be"),
        ({"std": [0.0]}, "std must be above 0"),
        ({"std": ["a"]}, "std cannot be"),
        ({"scale": 10**400}, "scale must be above 0"),
        ({"fit": "squash"}, "fit must be one of stretch, crop, letterbox"),
        ({"layout": "CHW", "order": "GRB"}, "layout must be.*order must be"),
        ({"fill": 256}, "fill must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(BundleError, match=f"here: preprocessing: .*{message}"):
        ImageSettings.read({"kind": "image", "input": "x", "size": [4, 5], **changes}, "here")
