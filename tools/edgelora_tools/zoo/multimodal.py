"""Images with text, and text with layout: transformers' multimodal models with small configurations."""

from __future__ import annotations

from typing import Any

import torch

from edgelora_tools.zoo.samples import ROWS, SMALL, SPECIAL, TEXT, Axes, Made, build, hf, ids

_WORDS: dict[str, Any] = {**SMALL, **TEXT}
_PATCHES: dict[str, Any] = {**SMALL, "image_size": 16, "patch_size": 4}


def _image(size: int = 16) -> torch.Tensor:
    return torch.randn(ROWS, 3, size, size, generator=torch.Generator().manual_seed(2))


def _both(
    module: torch.nn.Module, size: int = 16, mask: bool = True, types: bool = False, **more: torch.Tensor
) -> Made:
    """An image and a text per row."""
    tokens = ids()
    inputs: dict[str, torch.Tensor] = {"input_ids": tokens, "pixel_values": _image(size)}
    axes: Axes = {"input_ids": {0: "batch", 1: "sequence"}, "pixel_values": {0: "batch"}}
    if mask:
        inputs["attention_mask"] = torch.ones_like(tokens)
        axes["attention_mask"] = {0: "batch", 1: "sequence"}
    if types:
        inputs["token_type_ids"] = torch.zeros_like(tokens)
        axes["token_type_ids"] = {0: "batch", 1: "sequence"}
    return module, inputs | more, axes | {name: {0: "batch"} for name in more}


def clip() -> Made:
    """CLIP, arXiv:2103.00020."""
    config = hf.CLIPConfig(text_config={**_WORDS, **SPECIAL}, vision_config=_PATCHES, projection_dim=16)
    return _both(build(hf.CLIPModel, config))


def siglip() -> Made:
    """SigLIP, attention pooling, arXiv:2303.15343; texts of one length, as its positions are."""
    config = hf.SiglipConfig(text_config={**_WORDS, **SPECIAL, "projection_size": 32}, vision_config=_PATCHES)
    return _both(build(hf.SiglipModel, config))


def chinese_clip() -> Made:
    """Chinese CLIP, arXiv:2211.01335."""
    config = hf.ChineseCLIPConfig(text_config=_WORDS, vision_config=_PATCHES, projection_dim=16)
    return _both(build(hf.ChineseCLIPModel, config), types=True)


def clipseg() -> Made:
    """CLIPSeg, a mask from an image and a text, arXiv:2112.10003."""
    config = hf.CLIPSegConfig(
        text_config={**_WORDS, **SPECIAL}, vision_config=_PATCHES, projection_dim=16, reduce_dim=16,
        extract_layers=[0, 1], decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    return _both(build(hf.CLIPSegForImageSegmentation, config))


def align() -> Made:
    """ALIGN, EfficientNet and BERT, arXiv:2102.05918."""
    vision = {
        "image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 128,
        "in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 5],
        "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": [],
    }  # fmt: skip
    config = hf.AlignConfig(text_config=_WORDS, vision_config=vision, projection_dim=8)
    return _both(build(hf.AlignModel, config), 32, types=True)


def altclip() -> Made:
    """AltCLIP, XLM-R for the text, arXiv:2211.06679."""
    config = hf.AltCLIPConfig(text_config={**_WORDS, "project_dim": 16}, vision_config=_PATCHES, projection_dim=16)
    return _both(build(hf.AltCLIPModel, config, attention=None))


def groupvit() -> Made:
    """GroupViT, patches grouped by attention, arXiv:2202.11094."""
    vision = {
        **_PATCHES, "depths": [1, 1, 1], "num_hidden_layers": 3, "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 4], "image_size": 16,
    }  # fmt: skip
    config = hf.GroupViTConfig(
        text_config={**_WORDS, **SPECIAL}, vision_config=vision, projection_dim=16, projection_intermediate_dim=32
    )
    return _both(build(hf.GroupViTModel, config, attention=None))


def blip() -> Made:
    """BLIP, the two towers, arXiv:2201.12086."""
    config = hf.BlipConfig(
        text_config={**_WORDS, "encoder_hidden_size": 32, **SPECIAL}, vision_config=_PATCHES, projection_dim=16
    )
    return _both(build(hf.BlipModel, config, attention=None))


def vilt() -> Made:
    """ViLT, arXiv:2102.03334; images of one size, without a mask of pixels."""
    config = hf.ViltConfig(**_WORDS, image_size=16, patch_size=4, max_image_length=-1)
    return _both(build(hf.ViltModel, config, attention=None), types=True)


def flava() -> Made:
    """FLAVA, arXiv:2112.04482."""
    sizes = {**_WORDS, **{k: _PATCHES[k] for k in ("image_size", "patch_size")}}
    config = hf.FlavaConfig(
        text_config=sizes, image_config=sizes, multimodal_config=dict(SMALL), hidden_size=32, projection_dim=16
    )
    return _both(build(hf.FlavaModel, config, attention=None))


def git() -> Made:
    """GIT, captions, arXiv:2205.14100."""
    config = hf.GitConfig(**_WORDS, vision_config=_PATCHES, **SPECIAL)
    return _both(build(hf.GitModel, config))


def owlvit() -> Made:
    """OWL-ViT, one query per image, arXiv:2205.06230."""
    config = hf.OwlViTConfig(text_config={**_WORDS, **SPECIAL}, vision_config=_PATCHES, projection_dim=32)
    module, inputs, axes = _both(build(hf.OwlViTForObjectDetection, config))
    fixed = {name: {0: "batch"} for name in inputs}
    return module, inputs, axes | fixed


def bridgetower() -> Made:
    """BridgeTower, arXiv:2206.08657."""
    config = hf.BridgeTowerConfig(
        **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
        text_config={**_WORDS},
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
    )  # fmt: skip
    return _both(build(hf.BridgeTowerModel, config, attention=None))


def kosmos2() -> Made:
    """Kosmos-2 on text alone, arXiv:2306.14824."""
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextModel

    config = hf.Kosmos2Config(
        text_config={**TEXT, **SPECIAL, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4},
        vision_config=_PATCHES,
    ).text_config
    tokens = ids()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return build(Kosmos2TextModel, config), inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def lxmert() -> Made:
    """LXMERT, features of regions, arXiv:1908.07490."""
    config = hf.LxmertConfig(
        **{k: v for k, v in SMALL.items() if k != "num_hidden_layers"}, **TEXT, l_layers=1, x_layers=1, r_layers=1,
        visual_feat_dim=16,
    )  # fmt: skip
    module = build(hf.LxmertModel, config, attention=None)
    generator = torch.Generator().manual_seed(2)
    return _regions(
        module,
        visual_feats=torch.randn(ROWS, 5, 16, generator=generator),
        visual_pos=torch.rand(ROWS, 5, 4, generator=generator),
    )


def visual_bert() -> Made:
    """VisualBERT, arXiv:1908.03557."""
    module = build(hf.VisualBertModel, hf.VisualBertConfig(**_WORDS, visual_embedding_dim=16), attention=None)
    features = torch.randn(ROWS, 5, 16, generator=torch.Generator().manual_seed(2))
    return _regions(module, visual_embeds=features)


def _regions(module: torch.nn.Module, **features: torch.Tensor) -> Made:
    """A text and features of image regions per row."""
    tokens = ids()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **features}
    axes: Axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    return module, inputs, axes | {name: {0: "batch"} for name in features}


def layoutlmv3() -> Made:
    """LayoutLMv3 on text with boxes, arXiv:2204.08387."""
    config = hf.LayoutLMv3Config(
        **_WORDS | {"max_position_embeddings": 66}, coordinate_size=6, shape_size=4, max_2d_position_embeddings=64,
        visual_embed=False, has_relative_attention_bias=True, has_spatial_attention_bias=True, rel_pos_bins=8,
        rel_2d_pos_bins=8, max_rel_pos=16, max_rel_2d_pos=16,
    )  # fmt: skip
    tokens = ids()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    module = build(hf.LayoutLMv3Model, config, attention=None)
    return module, inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def lilt() -> Made:
    """LiLT, a layout stream beside the text's, arXiv:2202.13669."""
    module = build(
        hf.LiltModel,
        hf.LiltConfig(**_WORDS | {"hidden_size": 48}, channel_shrink_ratio=2, max_2d_position_embeddings=64),
        None,
    )
    tokens = ids()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return module, inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def trocr() -> Made:
    """TrOCR, a ViT that a text decoder reads, arXiv:2109.10282."""
    decoder = hf.TrOCRConfig(
        **TEXT, **SPECIAL, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
        cross_attention_hidden_size=32, decoder_start_token_id=1, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip

    def make() -> torch.nn.Module:
        encoder = hf.ViTModel(hf.ViTConfig(**_PATCHES))
        decoder.use_cache = False
        return hf.VisionEncoderDecoderModel(encoder=encoder, decoder=hf.TrOCRForCausalLM(decoder))

    module = build(make)
    module.config.use_cache = False
    inputs = {"pixel_values": _image(), "decoder_input_ids": ids(length=6)}
    return module, inputs, {"pixel_values": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target"}}


def donut() -> Made:
    """Donut, Swin and BART's decoder, arXiv:2111.15664."""
    decoder = hf.MBartConfig(
        **TEXT, **SPECIAL, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, is_decoder=True,
        is_encoder_decoder=False, add_cross_attention=True, use_cache=False,
    )  # fmt: skip
    vision = hf.DonutSwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4
    )

    def make() -> torch.nn.Module:
        return hf.VisionEncoderDecoderModel(encoder=hf.DonutSwinModel(vision), decoder=hf.MBartForCausalLM(decoder))

    module = build(make)
    module.config.use_cache = False
    inputs = {"pixel_values": _image(32), "decoder_input_ids": ids(length=6)}
    return module, inputs, {"pixel_values": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target"}}


def decision_transformer() -> Made:
    """Decision Transformer, returns, states and actions, arXiv:2106.01345; episodes of one length."""
    config = hf.DecisionTransformerConfig(
        state_dim=4, act_dim=2, hidden_size=32, max_ep_len=32, n_layer=2, n_head=4, n_positions=64
    )
    module = build(hf.DecisionTransformerModel, config, attention=None)
    generator = torch.Generator().manual_seed(2)
    steps = 5
    inputs = {
        "states": torch.randn(ROWS, steps, 4, generator=generator),
        "actions": torch.randn(ROWS, steps, 2, generator=generator),
        "rewards": torch.randn(ROWS, steps, 1, generator=generator),
        "returns_to_go": torch.randn(ROWS, steps, 1, generator=generator),
        "timesteps": torch.arange(steps).repeat(ROWS, 1),
        "attention_mask": torch.ones(ROWS, steps, dtype=torch.int64),
    }
    return module, inputs, {name: {0: "batch"} for name in inputs}
