"""Text encoders: transformers' model classes with small configurations."""

from __future__ import annotations

from typing import Any

from edgelora_tools.zoo.samples import SMALL, TEXT, VOCABULARY, Made, build, hf, text


def bert() -> Made:
    """BERT, arXiv:1810.04805."""
    return text(build(hf.BertModel, hf.BertConfig(**SMALL, **TEXT)), types=True)


def roberta() -> Made:
    """RoBERTa, arXiv:1907.11692; XLM-R and CamemBERT are the same network."""
    return text(build(hf.RobertaModel, hf.RobertaConfig(**SMALL, **TEXT)))


def roberta_prelayernorm() -> Made:
    """RoBERTa with the normalization first, arXiv:1904.01038."""
    return text(build(hf.RobertaPreLayerNormModel, hf.RobertaPreLayerNormConfig(**SMALL, **TEXT)))


def distilbert() -> Made:
    """DistilBERT, arXiv:1910.01108."""
    config = hf.DistilBertConfig(**TEXT, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    return text(build(hf.DistilBertModel, config))


def albert() -> Made:
    """ALBERT, one layer called several times, arXiv:1909.11942."""
    return text(build(hf.AlbertModel, hf.AlbertConfig(**SMALL, **TEXT, embedding_size=16)), types=True)


def electra() -> Made:
    """ELECTRA, arXiv:2003.10555."""
    return text(build(hf.ElectraModel, hf.ElectraConfig(**SMALL, **TEXT, embedding_size=16)), types=True)


def deberta() -> Made:
    """DeBERTa, disentangled attention, arXiv:2006.03654."""
    config = hf.DebertaConfig(
        **SMALL, **TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=16
    )
    return text(build(hf.DebertaModel, config))


def deberta_v2() -> Made:
    """DeBERTa v3, arXiv:2111.09543."""
    config = hf.DebertaV2Config(
        **SMALL,
        **TEXT,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    )
    return text(build(hf.DebertaV2Model, config))


def mpnet() -> Made:
    """MPNet, arXiv:2004.09297."""
    return text(build(hf.MPNetModel, hf.MPNetConfig(**SMALL, **TEXT)))


def mobilebert() -> Made:
    """MobileBERT, bottlenecks and NoNorm, arXiv:2004.02984."""
    config = hf.MobileBertConfig(
        **SMALL, **TEXT, embedding_size=32, intra_bottleneck_size=16, num_feedforward_networks=2
    )
    return text(build(hf.MobileBertModel, config), types=True)


def squeezebert() -> Made:
    """SqueezeBERT, grouped 1×1 convolutions for the linear layers, arXiv:2006.11316."""
    config = hf.SqueezeBertConfig(**SMALL, **TEXT, embedding_size=32)
    return text(build(hf.SqueezeBertModel, config), types=True)


def funnel() -> Made:
    """Funnel Transformer, pooled sequences, arXiv:2006.03236; sequences of one length."""
    config = hf.FunnelConfig(
        vocab_size=VOCABULARY, block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=4, d_head=8, d_inner=64
    )
    return text(build(hf.FunnelModel, config), types=True, length=8)


def convbert() -> Made:
    """ConvBERT, span-based dynamic convolution, arXiv:2008.02496."""
    config = hf.ConvBertConfig(**SMALL, **TEXT, embedding_size=32, head_ratio=2, conv_kernel_size=3)
    return text(build(hf.ConvBertModel, config), types=True)


def nystromformer() -> Made:
    """Nyströmformer, landmark attention, arXiv:2102.03902; full sequences of one length."""
    config = hf.NystromformerConfig(**SMALL, **TEXT, segment_means_seq_len=16, num_landmarks=4, conv_kernel_size=3)
    return text(build(hf.NystromformerModel, config), mask=False, length=16)


def fnet() -> Made:
    """FNet, Fourier transforms for attention, arXiv:2105.03824."""
    config = hf.FNetConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64, **TEXT)
    return text(build(hf.FNetModel, config), mask=False, types=True)


def longformer() -> Made:
    """Longformer, sliding windows, arXiv:2004.05150; sequences of one length."""
    return text(
        build(hf.LongformerModel, hf.LongformerConfig(**SMALL, **TEXT, attention_window=4, onnx_export=True)), length=16
    )


def big_bird() -> Made:
    """BigBird with full attention, arXiv:2007.14062."""
    config = hf.BigBirdConfig(**SMALL, **TEXT, attention_type="original_full")
    return text(build(hf.BigBirdModel, config), types=True)


def roformer() -> Made:
    """RoFormer, rotary positions, arXiv:2104.09864."""
    return text(build(hf.RoFormerModel, hf.RoFormerConfig(**SMALL, **TEXT)), types=True)


def modernbert() -> Made:
    """ModernBERT, local and global attention, gated units, arXiv:2412.13663."""
    config = hf.ModernBertConfig(**SMALL, **TEXT, pad_token_id=0, local_attention=4, global_attn_every_n_layers=2)
    return text(build(hf.ModernBertModel, config))


def xlnet() -> Made:
    """XLNet, relative positions by a shift, arXiv:1906.08237."""
    config = hf.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64, use_mems_eval=False)
    return text(build(hf.XLNetModel, config))


def layoutlm() -> Made:
    """LayoutLM, text with boxes (all at the origin here), arXiv:1912.13318."""
    return text(build(hf.LayoutLMModel, hf.LayoutLMConfig(**SMALL, **TEXT)), types=True)


def esm() -> Made:
    """ESM-2, proteins, rotary positions (Lin et al. 2023)."""
    config = hf.EsmConfig(**SMALL, **TEXT, pad_token_id=1, position_embedding_type="rotary", mask_token_id=3)
    return text(build(hf.EsmModel, config))


def ernie() -> Made:
    """ERNIE 2, arXiv:1907.12412."""
    return text(build(hf.ErnieModel, hf.ErnieConfig(**SMALL, **TEXT)), types=True)


def rembert() -> Made:
    """RemBERT, decoupled embeddings, arXiv:2010.12821."""
    config = hf.RemBertConfig(**SMALL, **TEXT, input_embedding_size=16, output_embedding_size=16)
    return text(build(hf.RemBertModel, config), types=True)


def ibert() -> Made:
    """I-BERT in its float mode, arXiv:2101.01321."""
    return text(build(hf.IBertModel, hf.IBertConfig(**SMALL, **TEXT), attention=None))


def megatron_bert() -> Made:
    """Megatron-BERT, normalization first, arXiv:1909.08053."""
    return text(build(hf.MegatronBertModel, hf.MegatronBertConfig(**SMALL, **TEXT)), types=True)


def nomic_bert() -> Made:
    """Nomic Embed, rotary BERT with gated units, arXiv:2402.01613."""
    return text(build(hf.NomicBertModel, hf.NomicBertConfig(**SMALL, **TEXT)), types=True)


def eurobert() -> Made:
    """EuroBERT, a Llama without the causal mask, arXiv:2503.05500."""
    return text(build(hf.EuroBertModel, hf.EuroBertConfig(**SMALL, **TEXT, num_key_value_heads=2, pad_token_id=0)))


def xlm() -> Made:
    """XLM, arXiv:1901.07291."""
    config = hf.XLMConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64)
    return text(build(hf.XLMModel, config, attention=None))


def tapas() -> Made:
    """TAPAS, tables as text: seven kinds of segment ids, arXiv:2004.02349."""
    import torch

    config = hf.TapasConfig(
        **SMALL, **TEXT, type_vocab_sizes=[3, 8, 8, 2, 8, 8, 4], reset_position_index_per_cell=False
    )
    module, inputs, axes = text(build(hf.TapasModel, config))
    inputs["token_type_ids"] = torch.zeros(*inputs["input_ids"].shape, 7, dtype=torch.int64)
    return module, inputs, axes | {"token_type_ids": {0: "batch", 1: "sequence"}}


def perceiver() -> Made:
    """Perceiver IO on bytes, arXiv:2107.14795."""
    from transformers.models.perceiver.modeling_perceiver import PerceiverTextPreprocessor

    config = hf.PerceiverConfig(
        num_latents=6, d_latents=32, d_model=32, num_blocks=1, num_self_attends_per_block=2,
        num_self_attention_heads=4, num_cross_attention_heads=4, vocab_size=VOCABULARY, max_position_embeddings=16,
    )  # fmt: skip

    def make() -> Any:
        return hf.PerceiverModel(config, input_preprocessor=PerceiverTextPreprocessor(config))

    module, inputs, axes = text(build(make), length=16)
    return (
        module,
        {"inputs": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
        {
            "inputs": axes["input_ids"],
            "attention_mask": axes["attention_mask"],
        },
    )


def canine() -> Made:
    """CANINE, characters by hashes, pooled by a strided convolution, arXiv:2103.06874; sequences of one length."""
    config = hf.CanineConfig(
        **SMALL, max_position_embeddings=64, local_transformer_stride=16, num_hash_buckets=64, num_hash_functions=4
    )
    return text(build(hf.CanineModel, config), types=True, length=32)
