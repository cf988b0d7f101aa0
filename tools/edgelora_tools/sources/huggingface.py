"""A source that is a Hugging Face directory: config.json, weights, and a tokenizer if text enters."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.onnx_file import tokenizer_files
from edgelora_tools.sources.pretrained import LOCAL, load_pretrained
from edgelora_tools.sources.token_ids import check_ids
from edgelora_tools.sources.torch_export import module_source, require_torch

_TEXT_SAMPLE = (2, 8)
_RESAMPLES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
_SPARE = ("pooler", "masked_spec_embed")  # what a head's model has not, and what masks sounds in pretraining
_VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def huggingface_source(folder: Path, exporter: str = "dynamo", tokenizer: Path | None = None) -> Source:
    """Load the backbone (AutoModel) from a local directory and export it.

    A task head in the checkpoint is left out: EdgeLoRA's head is new and belongs to the adapter. So is a pooler that
    the checkpoint has no weights of.

    Raises:
        ConversionError: not a model directory, an unknown architecture, or the export fails.
    """
    require_torch()
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ConversionError(f"{folder}: no config.json; SOURCE must be a Hugging Face model directory")
    try:
        model_type = json.loads(config_path.read_text(encoding="utf-8")).get("model_type", "")
    except (ValueError, AttributeError) as error:
        raise ConversionError(f"{config_path}: not valid JSON ({error})") from error
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    module, absent = load_pretrained(transformers.AutoModel, folder, folder, _SPARE)
    if "pooler" in absent:
        module.pooler = None
    files, facts = _tokenizer(folder) if tokenizer is None else tokenizer_files(tokenizer, required=True)
    config = module.config
    if files and module.main_input_name == "input_ids" and getattr(config, "vocab_size", None):
        check_ids(files["tokenizer.json"], config.vocab_size, tokenizer or folder)
    limit = int(getattr(config, "max_position_embeddings", 0) or 0)
    known = dict(facts) | {"model_type": model_type}
    if (pictures := image_facts(folder)) is not None:
        known["image"] = pictures
    if "max_length" in known and limit:
        known["max_length"] = min(int(known["max_length"]), limit)
    if files and getattr(config, "pad_token_id", None) is not None:
        known["pad_id"] = int(config.pad_token_id)
    with onnx_errors(f"{folder}: a {model_type} does not run on ids and a mask, or on pixels, alone"):
        inputs, extra = _sample(module, config)
        outputs = _output_names(module, inputs, extra)
    return module_source(
        module, inputs, folder.name, exporter, files=files, facts=known, extra=extra, outputs=outputs
    )  # fmt: skip


def _tokenizer(folder: Path) -> tuple[dict[str, bytes], dict[str, int]]:
    """The directory's tokenizer.json; where it has only a vocabulary, what transformers makes of it."""
    if (folder / "tokenizer.json").is_file() or not any((folder / name).is_file() for name in _VOCABULARIES):
        return tokenizer_files(folder / "tokenizer.json", required=False)
    import transformers

    with onnx_errors(f"{folder}: transformers cannot read its tokenizer"), TemporaryDirectory() as made:
        transformers.AutoTokenizer.from_pretrained(folder, **LOCAL).save_pretrained(made)
        return tokenizer_files(Path(made) / "tokenizer.json", required=True)


def image_facts(folder: Path) -> dict[str, Any] | None:
    """What `preprocessor_config.json` says of pictures, as fields of `ImageSettings`; None if it is not there.

    A shortest edge with a crop after it is the fit "crop", a height and a width are "stretch".

    Raises:
        ConversionError: it is not JSON, or asks for another size or resampling than these are.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        size, crop = (body.get(key) for key in ("size", "crop_size"))
        found: dict[str, Any] = {"scale": body.get("rescale_factor", 1 / 255) if body.get("do_rescale", True) else 1.0}
        if body.get("do_normalize", True) and "image_mean" in body:
            found |= {"mean": _numbers(body["image_mean"]), "std": _numbers(body["image_std"])}
        if body.get("do_resize", True) and size is not None:
            found["resample"] = _RESAMPLES[body.get("resample", 2)]
            edge = size.get("shortest_edge") if isinstance(size, dict) else size
            if edge is None:
                found["size"] = [size["height"], size["width"]]  # pyright: ignore[reportIndexIssue]
            elif "crop_pct" in body:
                found |= {"size": [edge, edge], "fit": "crop", "share": body["crop_pct"]}
            elif body.get("do_center_crop") and crop is not None:
                sides = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
                found |= {"size": list(sides), "fit": "crop", "share": min(1.0, min(sides) / edge)}
            else:
                found["size"] = [edge, edge]
        return found
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConversionError(f"{path}: cannot be followed ({error!r}); say --image-size and so on instead") from error


def _numbers(given: Any) -> list[float]:
    return [float(x) for x in (given if isinstance(given, list) else [given])]


def _sample(module, config) -> tuple[dict, dict]:
    """Sample inputs of the backbone's main input, and constant keyword arguments."""
    import torch

    extra: dict[str, object] = {"use_cache": False} if getattr(config, "use_cache", False) else {}
    if module.main_input_name == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.rand(2, config.num_channels, height, width)}, extra
    ids = torch.arange(_TEXT_SAMPLE[0] * _TEXT_SAMPLE[1]).reshape(_TEXT_SAMPLE) % config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs, extra


def _output_names(module, inputs, extra) -> list[str]:
    import torch

    with torch.no_grad():
        made = module(**inputs, **extra)
    return [name for name, value in made.items() if isinstance(value, torch.Tensor)]
