"""Annotated pictures in the formats of COCO, YOLO and Pascal VOC, and in CSV; a bad element is named."""

from __future__ import annotations

from pathlib import Path

from edgelora.errors import DataError
from edgelora.paths import is_file, is_folder
from edgelora.vision.annotations import box_table, coco, voc, yolo_text
from edgelora.vision.annotations.sample import Box, DetectionSample

READERS = {
    "coco": coco.read_coco,
    "csv": box_table.read_box_table,
    "voc": voc.read_voc,
    "yolo": yolo_text.read_yolo,
}


def read_boxes(path: str | Path, fmt: str | None = None) -> list[DetectionSample]:
    """The samples at `path`, in the format `fmt` of `READERS`; None tells it from what is there.

    That is a JSON file (COCO), a CSV file, a folder of XML files or with `Annotations` (VOC), or any other (YOLO).

    Raises:
        DataError: no such format, nothing there, or something is wrong with it.
    """
    path = Path(path)
    if not is_file(path) and not is_folder(path):
        raise DataError(f"{path}: does not exist")
    fmt = fmt or _format(path)
    if fmt not in READERS:
        raise DataError(f"{path}: there is no format {fmt!r} of boxes; there are {', '.join(READERS)}")
    if path.is_dir() != (fmt in ("voc", "yolo")):
        raise DataError(f"{path}: {fmt} is {'a folder' if fmt in ('voc', 'yolo') else 'a file'}")
    try:
        return READERS[fmt](path)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def _format(path: Path) -> str:
    if path.is_dir():
        return "voc" if voc.files(path) else "yolo"
    fmt = {".json": "coco", ".csv": "csv"}.get(path.suffix.lower())
    if fmt is None:
        raise DataError(f"{path}: boxes are read from .json (COCO), .csv, or a folder (VOC, YOLO)")
    return fmt


__all__ = ["READERS", "Box", "DetectionSample", "read_boxes"]
