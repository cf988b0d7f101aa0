"""A source that continues text: a Hugging Face directory or a GGUF file with a causal language model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelora.errors import BundleError, ConversionError
from edgelora.language.chat import ChatTemplate
from edgelora.manifest import MOST_POSITIONS
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.passes.without_cache import without_cache
from edgelora_tools.sources.base import Decoder, Source
from edgelora_tools.sources.gguf_header import Header, check_gguf
from edgelora_tools.sources.gguf_unread import check_read, limit_to_window
from edgelora_tools.sources.onnx_file import tokenizer_files
from edgelora_tools.sources.pretrained import LOCAL, load_pretrained
from edgelora_tools.sources.reading import check_reads
from edgelora_tools.sources.rotations import settle_rotations
from edgelora_tools.sources.token_ids import check_ids, check_tokens
from edgelora_tools.sources.torch_export import require_torch

if TYPE_CHECKING:
    import torch

TEMPLATE_FILE = "chat_template.jinja"
_CLOSE = 5e-3  # of the largest logit: float32 alone makes it 4e-4 where few tokens carry outliers (SmolLM2)
_IDS = ((3, 4, 5, 6, 7), (8, 9, 10))  # two samples that the module is tried with


def causal_lm_source(
    path: Path, exporter: str = "dynamo", tokenizer: Path | None = None, check_tokenizer: bool = True
) -> Source:
    """Load a decoder with its head and its tokenizer, and export it once, with a cache.

    Before it is exported, the model must read text by its tokenizer (unless that is not to be checked), and must give
    padded, packed and cached tokens what it gives each sample alone.

    Raises:
        ConversionError: see `load_causal_lm` and `check_reads`; it sees what comes after, or its type takes no such
            masks; or the export fails.
    """
    require_torch()
    if exporter != "dynamo":
        raise ConversionError(f"text-generation is exported by dynamo alone: leave --exporter {exporter} out")
    causal, name, files, facts, eos = load_causal_lm(path, tokenizer)
    if check_tokenizer:
        check_reads(causal, files["tokenizer.json"], tokenizer or path)
    return decoder_source(causal, name, files, facts, eos)


def load_causal_lm(
    path: Path, tokenizer: Path | None = None
) -> tuple[Any, str, dict[str, bytes], dict[str, Any], list[int]]:
    """A model of transformers in float32 with eager attention; its name, its files for text, what is known of its
    tokens, and those that end a text: the tokenizer's, then those of its configuration and of that for generation.

    `path` is a directory with config.json, or one with a GGUF file, or that file.

    Raises:
        ConversionError: it is none of these, or no decoder; a GGUF file says what transformers does not read; it has no
            tokenizer, or one of another model, or a broken chat template.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder, options, header = _whereabouts(path)
    with onnx_errors(f"{path}: transformers cannot load its configuration"):
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL, **options)
    kind = config.model_type
    if (
        config.is_encoder_decoder
        or kind not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ):
        raise ConversionError(f"{path}: a {kind} does not continue text: text-generation needs a decoder")
    if header is not None:
        check_read(path, header, config)
    files, facts, eos = _text_files(path, folder, options, tokenizer, config)
    if header is not None and tokenizer is not None:
        check_tokens(header.tokens, files["tokenizer.json"], tokenizer, path)
    causal, _ = load_pretrained(transformers.AutoModelForCausalLM, folder, path, **options)
    causal.eval()
    if header is not None:
        limit_to_window(header, causal.config)
    ending = dict.fromkeys([*eos, *_listed(causal.generation_config.eos_token_id)])
    return causal, path.stem if path.is_file() else path.name, files, facts, list(ending)


def decoder_source(
    causal: Any, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any], eos: Sequence[int]
) -> Source:
    """A causal language model of transformers, with eager attention, as a source.

    Raises:
        ConversionError: see `causal_lm_source`.
    """
    import torch

    from edgelora_tools.sources.cached_module import SLIDING, CachedModule, cache_names, empty_past, export_cached

    kind, config = causal.config.model_type, causal.config
    settled = settle_rotations(causal)
    module = CachedModule(causal).eval()
    with onnx_errors(f"{name}: a {kind} does not run on a cache, positions and a mask of our own"):
        past = empty_past(causal)
        hold_to_model(module, past, kind)
    layers, (heads, size) = len(past) // 2, (past[0].shape[1], past[0].shape[3])
    if any((x.shape[1], x.shape[3]) != (heads, size) for x in past):
        raise ConversionError(
            f"{name}: its layers keep keys and values of several shapes, which one cache does not hold"
        )
    cached = export_cached(module, past, config.vocab_size)

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        given = {n: torch.from_numpy(np.asarray(x)) for n, x in feeds.items()}
        rows = len(given["input_ids"])
        names = cache_names(layers)
        kept = [given.get(n, x.expand(rows, -1, -1, -1)) for n, x in zip(names, past, strict=True)]
        with torch.no_grad():
            made = module(given["input_ids"], given["attention_mask"], given["position_ids"], kept)
        return dict(zip(("logits", *cache_names(layers, "present")), (y.numpy() for y in made), strict=True))

    def rows_alone(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Products of other shapes sum in another order, which a token on an edge shows (docs/decisions/0046)."""
        rows = [run({n: x[[row]] for n, x in feeds.items()}) for row in range(len(feeds["input_ids"]))]
        return {name: np.concatenate([made[name] for made in rows]) for name in rows[0]}

    limits = (int(getattr(config, "max_position_embeddings", 0) or 0), settled)
    longest = min((limit for limit in limits if limit), default=0)
    bos, *ending = (token if token in range(config.vocab_size) else None for token in (config.bos_token_id, *eos))
    decoder = Decoder(
        cached=cached,
        window=module.window if SLIDING in module.kinds else 0,
        layers=layers,
        kv_heads=heads,
        head_size=size,
        vocabulary=int(config.vocab_size),
        max_length=longest,
        bos=bos,
        eos=tuple(token for token in ending if token is not None),
        chat_template=TEMPLATE_FILE if TEMPLATE_FILE in files else None,
    )
    known = {"max_length": longest or MOST_POSITIONS, **facts, "model_type": kind}
    model = without_cache(cached.clone())
    return Source("torch", name, model, run, files, known, decoder=decoder, otherwise=rows_alone)


def _whereabouts(path: Path) -> tuple[Path, dict[str, str], Header | None]:
    """The folder for transformers' `from_pretrained`, and of a GGUF file what it must be told to find it, and its
    header."""
    if path.is_dir() and (path / "config.json").is_file():
        return path, {}, None
    found = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ConversionError(f"{path}: has no config.json, and several GGUF files, {names}: name the one to convert")
    if not found:
        raise ConversionError(f"{path}: neither config.json nor one GGUF file: SOURCE of text-generation has either")
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConversionError(f'{found[0]}: GGUF files need a package: pip install "edgelora[gguf]"') from error
    header = check_gguf(found[0])
    return found[0].parent, {"gguf_file": found[0].name}, header


def _text_files(
    path: Path, folder: Path, options: Mapping[str, str], tokenizer: Path | None, config: Any
) -> tuple[dict[str, bytes], dict[str, Any], list[int]]:
    """The bundle's files for text, what the manifest says of them, and the tokens that end one.

    Raises:
        ConversionError: there is no tokenizer, it has more tokens than the model, or its chat template is broken.
    """
    import transformers

    if tokenizer is not None:
        files, facts = tokenizer_files(tokenizer, required=True)
        own, beside = None, folder / TEMPLATE_FILE
        with onnx_errors(f"{beside}: cannot be read"):
            template = beside.read_text(encoding="utf-8") if beside.is_file() else None
    else:
        with onnx_errors(f"{path}: it has no tokenizer that transformers reads; give --tokenizer tokenizer.json"):
            own = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL, **options)
            with TemporaryDirectory() as made:
                saved = Path(made) / "tokenizer.json"
                own.backend_tokenizer.save(str(saved))
                if options:
                    saved.write_text(json.dumps(_of_the_file(json.loads(saved.read_text("utf-8")))), "utf-8")
                files, facts = tokenizer_files(saved, required=True)
        template = own.chat_template
    check_ids(files["tokenizer.json"], config.vocab_size, tokenizer or path)
    if template is not None:
        _check_template(path, template)
        files[TEMPLATE_FILE] = template.encode()
    padding = (own and own.pad_token_id, config.pad_token_id)
    pad = next((x for x in padding if x is not None and 0 <= x < config.vocab_size), facts["pad_id"])
    ending = [own.eos_token_id if own is not None else None, *_listed(config.eos_token_id)]
    return files, {"pad_id": int(pad)}, list(dict.fromkeys(int(x) for x in ending if x is not None))


def _of_the_file(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A GGUF file's tokenizer.json without the special tokens of transformers' classes that the file has not.

    These would stand behind the vocabulary, where the model has no row.
    """
    model = tokenizer["model"]
    if not isinstance(vocabulary := model.get("vocab"), dict):
        return tokenizer
    own = [token for token in tokenizer["added_tokens"] if token["content"] in vocabulary]
    unknown = model.get("unk_token")
    return {
        **tokenizer,
        "added_tokens": own,
        "model": {**model, "unk_token": unknown if unknown in vocabulary else None},
    }


def _listed(token: int | list[int] | None) -> list[int]:
    return token if isinstance(token, list) else [] if token is None else [token]


def _check_template(path: Path, template: str) -> None:
    """Raise ConversionError unless the chat template is one."""
    if not isinstance(template, str):
        raise ConversionError(f"{path}: it has several chat templates, {', '.join(template)}: leave one")
    try:
        ChatTemplate(template, {}, f"{path}: its chat template")
    except BundleError as error:
        raise ConversionError(str(error)) from error


def hold_to_model(module: Any, past: Sequence[torch.Tensor], kind: str) -> None:
    """Hold packed, padded and cached tokens against each sample alone, as the model itself computes it.

    Raises:
        ConversionError: they differ: attention of this type does not go by the mask, or sees what comes after.
    """
    import torch

    from edgelora_tools.sources.cached_module import tokens_of

    bound = module.causal.config.vocab_size
    first, second = (torch.tensor([[i % bound for i in ids]]) for ids in _IDS)
    a, b = len(_IDS[0]), len(_IDS[1])
    with torch.no_grad():
        alone = [module.causal(input_ids=ids, use_cache=False).logits[0] for ids in (first, second)]
        packed = tokens_of([[0, *first[0].tolist(), *second[0].tolist(), 0]], [[0, *[1] * a, *[2] * b, 0]])
        whole = module(*packed.values(), list(past))[0][0]
        begun = module(first[:, :2], torch.ones(1, 2, dtype=torch.int64), torch.arange(2)[None], list(past))
        later = torch.arange(2, a)[None]
        rest = module(first[:, 2:], torch.ones(1, a, dtype=torch.int64), later, list(begun[1:]))[0][0]
    pairs = {
        "packed or padded": (torch.cat(alone), whole[1 : 1 + a + b]),
        "cached": (alone[0], torch.cat([begun[0][0], rest])),
    }
    for what, (wanted, got) in pairs.items():
        gap = float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1e-6))
        if not gap < _CLOSE:
            raise ConversionError(
                f"a {kind} gives {what} tokens something else than each sample alone (off by {gap:.1e}): "
                "text-generation needs a decoder whose attention goes by the mask that it is given"
            )
