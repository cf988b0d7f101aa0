"""Resampling: resizing, sampling at points, pooling regions, adding up columns."""

import numpy as np

from tests.gradients.case import Case, axes

MAPPINGS = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def scales(*values):
    """Scales: float32 `[n]`."""
    return np.array(values, np.float32)


def resize(shape, attributes, scales=None, sizes=None, roi=None, label=""):
    """A case of Resize; `sizes` where there are no `scales`."""
    return Case("Resize", [shape, roi, scales, sizes][: 3 if sizes is None else 4], attributes, label=label)


_UP, _DOWN, _BOTH = (8, 10), (3, 4), (7, 4)
_ROI = np.array([0.1, 0.2, 0.8, 0.9])
_OUTSIDE = np.array([-0.3, 0.2, 0.8, 1.4])

RESIZE = [
    *(
        resize((2, 3, 5, 6), {"mode": mode, "coordinate_transformation_mode": mapping}, sizes=axes(2, 3, *to))
        for mode in ("nearest", "linear", "cubic")
        for mapping in MAPPINGS
        for to in (_UP, _DOWN, _BOTH)
    ),
    *(
        resize((1, 2, 5, 6), {"nearest_mode": how, "coordinate_transformation_mode": mapping}, scales(1, 1, *by))
        for how in NEAREST
        for mapping in ("half_pixel", "asymmetric")
        for by in ((2, 3), (1.75, 0.625))
    ),
    *(
        resize((1, 2, 5, 6), {"mode": mode, "coordinate_transformation_mode": mapping}, scales(1, 1, 1.25, 0.75))
        for mode in ("nearest", "linear", "cubic")
        for mapping in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric")
    ),
    *(
        resize((1, 2, 5, 6), {"mode": "linear", "coordinate_transformation_mode": m}, sizes=axes(1, 2, *to))
        for m in ("pytorch_half_pixel", "align_corners", "half_pixel")
        for to in ((1, 4), (1, 1), (5, 6))
    ),
    *(
        resize((1, 2, 6, 5), {"mode": "cubic", "cubic_coeff_a": a, "exclude_outside": out}, sizes=axes(1, 2, 9, 3))
        for a in (-0.75, -0.5)
        for out in (0, 1)
    ),
    *(
        resize((1, 2, 9, 5), {"mode": mode, "antialias": 1, "exclude_outside": out}, sizes=axes(1, 2, 4, 7))
        for mode, out in (("linear", 0), ("cubic", 0), ("cubic", 1))
    ),
    *(
        resize(
            (1, 2, 5, 6),
            {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "axes": [2, 3], **outside},
            sizes=axes(4, 7),
            roi=roi,
        )
        for mode in ("nearest", "linear", "cubic")
        for roi, outside in ((_ROI, {}), (_OUTSIDE, {"extrapolation_value": 2.5}))
    ),
    resize(
        (1, 2, 5, 6),
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        scales(1, 1, 2, 1),
        roi=np.array([0, 0, 0.25, 0, 1, 1, 0.75, 1]),
        label="crop",
    ),
    *(
        resize((1, 2, 4, 7), {"mode": mode, "axes": list(on), "keep_aspect_ratio_policy": policy}, sizes=axes(*to))
        for mode in ("nearest", "linear", "cubic")
        for policy in ("not_larger", "not_smaller")
        for on, to in (((2, 3), (6, 8)), ((3, 2), (5, 9)), ((-1,), (5,)))
    ),
    resize(
        (1, 2, 4, 8),
        {
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "axes": [2, 3],
            "keep_aspect_ratio_policy": "not_larger",
        },
        sizes=axes(6, 20),
        roi=_ROI,
        label="crop of a ratio",
    ),
    resize((2, 3, 4), {"keep_aspect_ratio_policy": "not_larger"}, sizes=axes(4, 7, 9), label="every axis"),
    resize((2, 3, 4, 5), {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, scales(2, 3, 1, 2)),
    resize((5,), {}, scales(1.6)),
    resize((3, 4), {"mode": "linear"}, sizes=axes(5, 2)),
    resize((2, 3, 4), {"mode": "linear"}, scales(1, 1, 2.0)),
    resize((2, 3, 4), {"mode": "linear", "axes": [2]}, sizes=axes(7)),
    resize((1, 2, 3, 4, 5), {"mode": "linear"}, sizes=axes(1, 2, 5, 3, 9)),
    resize(
        (1, 2, 3, 2, 2),
        {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
        scales(1, 1, 2, 3, 1),
    ),
    resize((1, 4, 5, 2), {"mode": "linear"}, scales(1, 1.5, 2, 1), label="channels last"),
    resize((1, 2, 5, 6), {"axes": [-2]}, scales(2)),
    Case("Resize", [(1, 2, 5, 6), None, scales(1, 1, 2, 3)], {"nearest_mode": "floor"}, computed=(2,)),
    Case("Resize", [(1, 2, 5, 6), None, scales(2, 0.75)], {"mode": "linear", "axes": [2, 3]}, computed=(2,)),
    Case("Resize", [(1, 2, 5, 6), None, None, axes(1, 2, 10, 3)], {"mode": "cubic"}, computed=(3,)),
    Case(
        "Resize",
        [(1, 2, 4, 6), _OUTSIDE, None, axes(8, 6)],
        {
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "axes": [3, 2],
            "keep_aspect_ratio_policy": "not_smaller",
            "extrapolation_value": -1.5,
        },
        computed=(1, 3),
    ),
    Case("Resize", [(1, 2, 3, 4), np.zeros(0), scales(), axes(1, 2, 6, 5)], label="empty roi and scales"),
]


def between(low, high, sizes, shape, align, seed=0):
    """Normalized points `[…, axes]` from `low` to `high`, in pixels, none near a pixel or half way between two."""
    rng = np.random.default_rng(seed)
    size = np.array(sizes[::-1], float)
    at = rng.integers(low, high, (*shape, len(sizes))) + rng.choice([0.2, 0.35, 0.65, 0.8], (*shape, len(sizes)))
    at = at * (size / max(sizes))
    at = np.floor(at) + np.clip(at % 1, 0.1, 0.4)
    return 2 * at / (size - 1) - 1 if align else (2 * at + 1) / size - 1


_PLANE, _VOLUME = (4, 5), (3, 2, 4)
_IN_VOLUMES = [("nearest", "border", 0), ("linear", "zeros", 1), ("linear", "border", 0), ("linear", "reflection", 0)]

GRID_SAMPLE = [
    *(
        Case(
            "GridSample",
            [(2, 3, *sizes), between(-7, 12, sizes, (2, 3, *sizes[1:]), align)],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
            wrt=(0,) if mode == "nearest" else (0, 1),
        )
        for sizes in (_PLANE, _VOLUME)
        for mode in ("nearest", "linear", "cubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
        if sizes == _PLANE or (mode, padding, align) in _IN_VOLUMES
    ),
    Case("GridSample", [(2, 2, 4, 5), (2, 3, 4, 2)], wrt=(0,), label="default"),
    Case("GridSample", [(1, 2, 1, 4), (1, 2, 2, 2)], {"padding_mode": "reflection", "align_corners": 1}, wrt=(0,)),
]

AFFINE_GRID = [
    Case("AffineGrid", [(2, r, r + 1), axes(2, 3, *size)], {"align_corners": align})
    for r, size in ((2, (4, 5)), (3, (2, 3, 4)))
    for align in (0, 1)
]

_ROIS = np.array([[0.3, 0.7, 4.2, 5.1], [-3, -2, 9, 8], [1, 1, 1.2, 1.3], [4.1, 3.2, 2.3, 9.7], [20, 20, 25, 30]])
_OF = axes(0, 1, 1, 0, 1)
_WELL_FORMED = [0, 1, 2, 4]
"""ONNX Runtime counts the samples of other regions only where their number is given or regions grow to a pixel."""

ROI_ALIGN = [
    *(
        Case(
            "RoiAlign",
            [(2, 3, 7, 6), _ROIS[some], _OF[some]],
            {
                "mode": mode,
                "coordinate_transformation_mode": pixel,
                "sampling_ratio": ratio,
                "output_height": 2,
                "output_width": 3,
                "spatial_scale": 0.9,
            },
            wrt=(0,),
        )
        for mode in ("avg", "max")
        for pixel in ("half_pixel", "output_half_pixel")
        for ratio in (0, 1, 2)
        for some in [_WELL_FORMED if (pixel, ratio) == ("half_pixel", 0) else slice(None)]
    ),
    Case("RoiAlign", [(2, 3, 5, 4), _ROIS[_WELL_FORMED], _OF[_WELL_FORMED]], wrt=(0,), label="default"),
    *(
        Case(
            "RoiAlign",
            [(2, 2, 5, 4), _ROIS, _OF],
            {"mode": mode, "coordinate_transformation_mode": "output_half_pixel", "output_width": 2},
            wrt=(0,),
            computed=(1, 2),
        )
        for mode in ("avg", "max")
    ),
    Case("RoiAlign", [(2, 3, 5, 4), _ROIS[:0], _OF[:0]], {"output_height": 2}, wrt=(0,), label="no regions"),
]

COL2IM = [
    Case("Col2Im", [(2, 3 * 4, 4 * 5), axes(5, 6), axes(2, 2)]),
    Case("Col2Im", [(2, 3 * 6, 3 * 3), axes(4, 7), axes(2, 3)], {"pads": [1, 0, 1, 2], "strides": [2, 3]}),
    Case("Col2Im", [(1, 2 * 6, 3 * 7), axes(5, 9), axes(3, 2)], {"pads": [1, 0, 1, 0], "dilations": [2, 2]}),
    Case("Col2Im", [(2, 2 * 4, 2 * 2), axes(4, 4), axes(2, 2)], {"strides": [2, 2]}, label="patches"),
    Case("Col2Im", [(2, 2 * 4, 2 * 3), axes(5, 4), axes(2, 2)], {"strides": [2, 1]}, computed=(1, 2)),
    Case("Col2Im", [(1, 2 * 8, 2 * 3 * 4), axes(3, 4, 5), axes(2, 2, 2)], label="volume"),
]


def deform(size, kernel, out, attributes, batch=2, channels=4, makes=4, bias=True, masked=True):
    """A case of DeformConv; offsets of at most 0.3 pixels and never near 0."""
    group, offset_group = attributes.get("group", 1), attributes.get("offset_group", 1)
    rng, elements = np.random.default_rng(0), offset_group * int(np.prod(kernel))
    shape = (batch, elements * len(kernel), *out)
    offset = rng.uniform(0.1, 0.4, shape) + rng.integers(-2, 2, shape)
    inputs = [(batch, channels, *size), (makes, channels // group, *kernel), offset]
    inputs += [(makes,) if bias else None, (batch, elements, *out) if masked else None]
    while inputs[-1] is None:
        inputs.pop()
    wrt = tuple(i for i, given in enumerate(inputs) if given is not None)
    return Case("DeformConv", inputs, {"kernel_shape": list(kernel), **attributes}, wrt=wrt)


DEFORM_CONV = [
    deform((4, 5), (2, 2), (3, 4), {}),
    deform((4, 5), (2, 2), (3, 4), {}, bias=False),
    deform((4, 3), (3, 2), (4, 3), {"pads": [1, 1, 1, 0], "group": 2, "offset_group": 2}, masked=False),
    deform(
        (5, 6), (2, 3), (3, 2), {"pads": [1, 0, 1, 1], "strides": [2, 3], "offset_group": 4}, bias=False, masked=False
    ),
    deform((5, 6), (2, 2), (3, 4), {"dilations": [2, 2], "group": 4}, batch=1),
]

CASES = [*RESIZE, *GRID_SAMPLE, *AFFINE_GRID, *ROI_ALIGN, *COL2IM, *DEFORM_CONV]
