"""Encoder–decoders of text: transformers' model classes with small configurations."""

from __future__ import annotations

from typing import Any

from edgelora_tools.zoo.samples import SPECIAL, TEXT, VOCABULARY, Made, build, hf, translation

_BART: dict[str, Any] = {
    **TEXT, **SPECIAL, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 2,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip


def t5() -> Made:
    """T5, arXiv:1910.10683."""
    return translation(build(hf.T5Model, hf.T5Config(**_T5)))


def flan_t5() -> Made:
    """T5 1.1, gated units, arXiv:2002.05202; mT5 and Flan-T5 are the same network."""
    return translation(build(hf.MT5Model, hf.MT5Config(**_T5)))


def umt5() -> Made:
    """UMT5, positions of its own in every layer, arXiv:2304.09151."""
    return translation(build(hf.UMT5Model, hf.UMT5Config(**_T5)))


def longt5() -> Made:
    """LongT5, local attention, arXiv:2112.07916."""
    return translation(build(hf.LongT5Model, hf.LongT5Config(**_T5, local_radius=3)))


def switch_transformers() -> Made:
    """Switch Transformer, one expert per token, arXiv:2101.03961."""
    config = hf.SwitchTransformersConfig(**_T5, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
    return translation(build(hf.SwitchTransformersModel, config))


def bart() -> Made:
    """BART, arXiv:1910.13461."""
    return translation(build(hf.BartModel, hf.BartConfig(**_BART)))


def mbart() -> Made:
    """mBART, arXiv:2001.08210."""
    return translation(build(hf.MBartModel, hf.MBartConfig(**_BART)))


def pegasus() -> Made:
    """Pegasus, arXiv:1912.08777."""
    return translation(build(hf.PegasusModel, hf.PegasusConfig(**_BART)))


def marian() -> Made:
    """Marian, arXiv:1804.00344."""
    return translation(build(hf.MarianModel, hf.MarianConfig(**_BART)))


def blenderbot() -> Made:
    """Blenderbot, arXiv:2004.13637."""
    return translation(build(hf.BlenderbotModel, hf.BlenderbotConfig(**_BART)))


def m2m_100() -> Made:
    """M2M-100 and NLLB, arXiv:2010.11125."""
    return translation(build(hf.M2M100Model, hf.M2M100Config(**_BART)))


def plbart() -> Made:
    """PLBART, arXiv:2103.06333."""
    return translation(build(hf.PLBartModel, hf.PLBartConfig(**_BART)))


def mvp() -> Made:
    """MVP, arXiv:2206.12131."""
    return translation(build(hf.MvpModel, hf.MvpConfig(**_BART), attention=None))


def led() -> Made:
    """LED, Longformer's encoder and BART's decoder, arXiv:2004.05150; encoder sequences of one length."""
    sizes = {k: v for k, v in _BART.items() if k != "max_position_embeddings"}
    config = hf.LEDConfig(
        **sizes, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64, attention_window=4
    )
    config.onnx_export = True
    module, inputs, axes = translation(build(hf.LEDModel, config, attention=None))
    return module, inputs, axes | {name: {0: "batch"} for name in ("input_ids", "attention_mask")}


def prophetnet() -> Made:
    """ProphetNet, n-gram prediction, arXiv:2001.04063; decoder sequences of one length."""
    config = hf.ProphetNetConfig(
        **TEXT, **SPECIAL, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_encoder_layers=2,
        num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4, ngram=2,
        num_buckets=8, relative_max_distance=16,
    )  # fmt: skip
    module, inputs, axes = translation(build(hf.ProphetNetModel, config, attention=None))
    return module, inputs, axes | {"decoder_input_ids": {0: "batch"}}


def fsmt() -> Made:
    """FSMT (Ng et al. 2019), arXiv:1907.06616."""
    sizes = {k: v for k, v in _BART.items() if k != "vocab_size"}
    config = hf.FSMTConfig(
        **sizes, langs=["en", "de"], src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY,
    )  # fmt: skip
    module, inputs, axes = translation(build(hf.FSMTModel, config, attention=None))
    inputs["decoder_input_ids"][1, -1] = 0  # some padding, or the trace leaves its mask out
    return module, inputs, axes
