"""Write a bundle: one weights file that all graphs share, the graphs, what raw input needs, the manifest."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from edgelora.errors import ConversionError
from edgelora.manifest import FileEntry, Manifest, MemoryTable

WEIGHTS_FILE, PARITY_FILE, MANIFEST_FILE = "weights.bin", "parity.safetensors", "bundle.json"
INLINE_LIMIT = 1024
PAGE, LARGE_PAGE = 4096, 65536

Samples = Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]
"""Inputs and outputs of the source, by the name of the sample."""


def base_digest(model: ir.Model, features: Iterable[bytes] = ()) -> str:
    """sha256 of the frozen weights: of the sorted sha256 of (dtype, shape, bytes) of each, and of files of `features`.

    Neither names nor order nor the layout of the weights' file enter it.
    """
    digests = [*map(tensor_digest, frozen_weights(model)), *(hashlib.sha256(file).digest() for file in features)]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def frozen_weights(model: ir.Model) -> list[ir.TensorProtocol]:
    """The initializers that are weights: floating-point ones of more than one element, and any of 1 KiB or more.

    The lists of axes and sizes that exporters write are none.
    """
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return [t for t in tensors if t.nbytes >= INLINE_LIMIT or (t.dtype.is_floating_point() and t.size > 1)]


def tensor_digest(tensor: ir.TensorProtocol) -> bytes:
    """sha256 of a tensor's type, shape and little-endian bytes."""
    head = f"{tensor.dtype.name}{tuple(int(d) for d in tensor.shape.numpy())}".encode()
    return hashlib.sha256(head + tensor.tobytes()).digest()


def write_bundle(
    destination: Path,
    manifest: Manifest,
    graphs: Mapping[str, ir.Model],
    samples: Samples,
    extra_files: Mapping[str, bytes],
    overwrite: bool,
    measure: Callable[[Path, ir.Model], MemoryTable | None] = lambda _path, _model: None,
    accept: Callable[[Path], None] = lambda _path: None,
) -> Manifest:
    """Write everything into a temporary directory beside `destination` and rename it: all or nothing.

    `measure` is asked for the memory table of each graph that was written, and `accept` is shown the finished bundle:
    what it raises leaves everything as it was.

    An old bundle is moved aside whole before the new one takes its place, and deleted last.

    Raises:
        ConversionError: see `check_destination`, or the disk refuses.
    """
    check_destination(destination, overwrite)
    staging: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        _write_graphs(staging, graphs)
        _write_samples(staging / PARITY_FILE, samples)
        for name, content in extra_files.items():
            (staging / name).write_bytes(content)
        files = {path.name: _entry(path) for path in sorted(staging.iterdir())}
        measured = {
            file: table for file, graph in graphs.items() if (table := measure(staging / file, graph)) is not None
        }
        finished = replace(manifest, files=files, memory=measured)
        (staging / MANIFEST_FILE).write_text(finished.to_json(), encoding="utf-8")
        accept(staging)
        for path in (staging, *staging.iterdir()):  # a bundle is for sharing; temporary folders are private
            path.chmod(0o755 if path.is_dir() else 0o644)
        _put_in_place(staging, destination)
    except OSError as error:
        raise ConversionError(f"{destination} could not be written: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return finished


def check_destination(destination: Path, overwrite: bool) -> None:
    """Raise ConversionError if something is there that may not be replaced: anything, or anything but a bundle."""
    if not destination.exists():
        return
    if not overwrite:
        raise ConversionError(f"{destination} exists; choose another -o or add --overwrite")
    if not (destination / MANIFEST_FILE).is_file():
        raise ConversionError(f"{destination} exists and is not a bundle: --overwrite does not replace it")


def _put_in_place(staging: Path, destination: Path) -> None:
    if not destination.exists():
        staging.rename(destination)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    old = destination.rename(aside / destination.name)
    try:
        staging.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> None:
    offsets: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for model in graphs.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < INLINE_LIMIT:
                    continue
                digest = hashlib.sha256(content := tensor.tobytes()).digest()
                if digest not in offsets:
                    page = LARGE_PAGE if tensor.nbytes >= 16 * LARGE_PAGE else PAGE
                    weights.write(b"\0" * (-weights.tell() % page))
                    offsets[digest] = (weights.tell(), tensor.nbytes)
                    view = memoryview(content)
                    for start in range(0, len(view), LARGE_PAGE):  # see docs/decisions/0015: what is written in
                        weights.write(view[start : start + LARGE_PAGE])  # one piece is mapped in one piece
                offset, length = offsets[digest]
                shape, name = ir.Shape(tensor.shape.numpy()), str(value.name)
                value.const_value = ir.ExternalTensor(
                    WEIGHTS_FILE, offset, length, tensor.dtype, shape=shape, name=name, base_dir=folder
                )
    for file, model in graphs.items():
        (folder / file).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _write_samples(path: Path, samples: Samples) -> None:
    arrays = {}
    for number, (inputs, outputs) in samples.items():
        arrays |= {f"{number}/in/{name}": np.asarray(x, order="C") for name, x in inputs.items()}
        arrays |= {f"{number}/out/{name}": np.asarray(x, order="C") for name, x in outputs.items()}
    save_file(arrays, path)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
