"""Images to features: transformers' vision backbones with small configurations."""

from __future__ import annotations

from typing import Any

import torch

from edgelora_tools.zoo.samples import ROWS, SMALL, Made, build, floats, hf, pixels

_VIT: dict[str, Any] = {**SMALL, "image_size": 16, "patch_size": 4}


def vit() -> Made:
    """ViT, arXiv:2010.11929."""
    return pixels(build(hf.ViTModel, hf.ViTConfig(**_VIT)), 16)


def deit() -> Made:
    """DeiT, a distillation token, arXiv:2012.12877."""
    return pixels(build(hf.DeiTModel, hf.DeiTConfig(**_VIT)), 16)


def beit() -> Made:
    """BEiT, relative positions, arXiv:2106.08254."""
    config = hf.BeitConfig(**_VIT, use_relative_position_bias=True, use_mean_pooling=True)
    return pixels(build(hf.BeitModel, config), 16)


def swin() -> Made:
    """Swin, shifted windows, arXiv:2103.14030."""
    config = hf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return pixels(build(hf.SwinModel, config))


def swinv2() -> Made:
    """Swin v2, cosine attention and a network for the positions, arXiv:2111.09883."""
    config = hf.Swinv2Config(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return pixels(build(hf.Swinv2Model, config))


def swin2sr() -> Made:
    """Swin2SR, super-resolution, arXiv:2209.11345."""
    config = hf.Swin2SRConfig(image_size=16, embed_dim=16, depths=[2], num_heads=[2], window_size=4, upscale=2)
    return pixels(build(hf.Swin2SRForImageSuperResolution, config, attention=None), 16)


def dinov2() -> Made:
    """DINOv2, arXiv:2304.07193."""
    sizes = {k: v for k, v in _VIT.items() if k != "intermediate_size"}
    return pixels(build(hf.Dinov2Model, hf.Dinov2Config(**sizes, mlp_ratio=2)), 16)


def dinov2_with_registers() -> Made:
    """DINOv2 with register tokens, arXiv:2309.16588."""
    sizes = {k: v for k, v in _VIT.items() if k != "intermediate_size"}
    return pixels(build(hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2)), 16)


def dinov3_vit() -> Made:
    """DINOv3, rotary positions of patches, arXiv:2508.10104."""
    return pixels(build(hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**_VIT)), 16)


def ijepa() -> Made:
    """I-JEPA, arXiv:2301.08243."""
    return pixels(build(hf.IJepaModel, hf.IJepaConfig(**_VIT)), 16)


def vit_msn() -> Made:
    """ViT-MSN, arXiv:2204.07141."""
    return pixels(build(hf.ViTMSNModel, hf.ViTMSNConfig(**_VIT)), 16)


def hiera() -> Made:
    """Hiera, arXiv:2306.00989."""
    config = hf.HieraConfig(
        embed_dim=16, image_size=[32, 32], patch_stride=[4, 4], depths=[1, 1], num_heads=[2, 4], embed_dim_multiplier=2,
        query_stride=[2, 2], num_query_pool=1, masked_unit_size=[4, 4], masked_unit_attention=[True, False],
    )  # fmt: skip
    return pixels(build(hf.HieraModel, config))


def pvt() -> Made:
    """PVT, reduced keys, arXiv:2102.12122."""
    config = hf.PvtConfig(
        image_size=32, num_encoder_blocks=2, depths=[1, 1], sequence_reduction_ratios=[2, 1], hidden_sizes=[16, 32],
        patch_sizes=[4, 2], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
    )  # fmt: skip
    return pixels(build(hf.PvtModel, config))


def pvt_v2() -> Made:
    """PVT v2, arXiv:2106.13797."""
    config = hf.PvtV2Config(
        image_size=32, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
    )  # fmt: skip
    return pixels(build(hf.PvtV2Model, config))


def cvt() -> Made:
    """CvT, convolutional projections, arXiv:2103.15808."""
    config = hf.CvtConfig(
        patch_sizes=[7, 3], patch_stride=[4, 2], patch_padding=[2, 1], embed_dim=[16, 32], num_heads=[1, 2],
        depth=[1, 2], mlp_ratio=[2.0, 2.0], attention_drop_rate=[0.0, 0.0], drop_rate=[0.0, 0.0],
        drop_path_rate=[0.0, 0.0], qkv_bias=[True, True], cls_token=[False, True],
        qkv_projection_method=["dw_bn", "dw_bn"], kernel_qkv=[3, 3], padding_kv=[1, 1], stride_kv=[2, 2],
        padding_q=[1, 1], stride_q=[1, 1],
    )  # fmt: skip
    return pixels(build(hf.CvtModel, config))


def levit() -> Made:
    """LeViT, arXiv:2104.01136."""
    config = hf.LevitConfig(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8],
        attention_ratio=[2, 2, 2], mlp_ratio=[2, 2, 2],
    )  # fmt: skip
    return pixels(build(hf.LevitModel, config), 64)


def convnext() -> Made:
    """ConvNeXt, arXiv:2201.03545."""
    config = hf.ConvNextConfig(num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], patch_size=4)
    return pixels(build(hf.ConvNextModel, config))


def convnextv2() -> Made:
    """ConvNeXt v2, global response normalization, arXiv:2301.00808."""
    config = hf.ConvNextV2Config(num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], patch_size=4)
    return pixels(build(hf.ConvNextV2Model, config))


def resnet() -> Made:
    """ResNet, arXiv:1512.03385."""
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck")
    return pixels(build(hf.ResNetForImageClassification, config))


def bit() -> Made:
    """Big Transfer, standardized weights and group normalization, arXiv:1912.11370."""
    config = hf.BitConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_groups=4)
    return pixels(build(hf.BitForImageClassification, config))


def regnet() -> Made:
    """RegNet, grouped convolutions and squeeze-and-excite, arXiv:2003.13678."""
    config = hf.RegNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8)
    return pixels(build(hf.RegNetForImageClassification, config))


def mobilenet_v1() -> Made:
    """MobileNet, arXiv:1704.04861."""
    config = hf.MobileNetV1Config(image_size=32, depth_multiplier=0.25, min_depth=8, tf_padding=False)
    return pixels(build(hf.MobileNetV1ForImageClassification, config))


def mobilenet_v2() -> Made:
    """MobileNet v2, arXiv:1801.04381."""
    config = hf.MobileNetV2Config(image_size=32, depth_multiplier=0.25, min_depth=8, tf_padding=False)
    return pixels(build(hf.MobileNetV2ForImageClassification, config))


def efficientnet() -> Made:
    """EfficientNet, arXiv:1905.11946."""
    config = hf.EfficientNetConfig(
        image_size=32, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, in_channels=[32, 16],
        out_channels=[16, 24], kernel_sizes=[3, 5], strides=[1, 2], num_block_repeats=[1, 2], expand_ratios=[1, 6],
        depthwise_padding=[],
    )  # fmt: skip
    return pixels(build(hf.EfficientNetForImageClassification, config))


def mobilevit() -> Made:
    """MobileViT, convolutions and attention on unfolded patches, arXiv:2110.02178."""
    config = hf.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 16, 24, 32], num_attention_heads=2
    )
    return pixels(build(hf.MobileViTModel, config), 64)


def mobilevitv2() -> Made:
    """MobileViT v2, linear attention, arXiv:2206.02680."""
    config = hf.MobileViTV2Config(
        image_size=64, width_multiplier=0.25, base_attn_unit_dims=[32, 48, 64], n_attn_blocks=[1, 1, 1]
    )
    return pixels(build(hf.MobileViTV2Model, config), 64)


def swiftformer() -> Made:
    """SwiftFormer, additive attention, arXiv:2303.15446."""
    config = hf.SwiftFormerConfig(
        image_size=32, depths=[1, 1], embed_dims=[16, 32], mlp_ratio=2, downsamples=[True, True]
    )
    return pixels(build(hf.SwiftFormerModel, config))


def poolformer() -> Made:
    """PoolFormer, average pools for attention, arXiv:2111.11418."""
    config = hf.PoolFormerConfig(
        depths=[1, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1], num_encoder_blocks=2,
        mlp_ratio=2.0,
    )  # fmt: skip
    return pixels(build(hf.PoolFormerModel, config))


def focalnet() -> Made:
    """FocalNet, focal modulation, arXiv:2203.11926."""
    config = hf.FocalNetConfig(
        image_size=32, patch_size=2, embed_dim=16, hidden_sizes=[16, 32], depths=[1, 1], focal_levels=[2, 2],
        focal_windows=[3, 3], use_post_layernorm=True, use_layerscale=True,
    )  # fmt: skip
    return pixels(build(hf.FocalNetModel, config))


def hgnet_v2() -> Made:
    """HGNet v2 (PaddlePaddle 2023)."""
    config = hf.HGNetV2Config(
        stem_channels=[3, 16, 16], hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16, stage_in_channels=[16, 16],
        stage_mid_channels=[8, 8], stage_out_channels=[16, 32], stage_num_blocks=[1, 1], stage_downsample=[False, True],
        stage_light_block=[False, True], stage_kernel_size=[3, 5], stage_numb_of_layers=[2, 2],
    )  # fmt: skip
    return pixels(build(hf.HGNetV2ForImageClassification, config, attention=None))


def dinov3_convnext() -> Made:
    """DINOv3's ConvNeXt, arXiv:2508.10104."""
    config = hf.DINOv3ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1])
    return pixels(build(hf.DINOv3ConvNextModel, config, attention=None))


def vit_mae() -> Made:
    """ViT-MAE's encoder with nothing masked, arXiv:2111.06377."""
    module, inputs, axes = pixels(build(hf.ViTMAEModel, hf.ViTMAEConfig(**_VIT, mask_ratio=0.0)), 16)
    noise = torch.rand(ROWS, 16, generator=torch.Generator().manual_seed(3))  # it orders the patches
    return module, inputs | {"noise": noise}, axes | {"noise": {0: "batch"}}


def timesformer() -> Made:
    """TimeSformer, video, arXiv:2102.05095."""
    config = hf.TimesformerConfig(**_VIT, num_frames=2)
    return floats(build(hf.TimesformerModel, config), 2, 3, 16, 16)


def videomae() -> Made:
    """VideoMAE, video, arXiv:2203.12602."""
    config = hf.VideoMAEConfig(**_VIT, num_frames=4, tubelet_size=2)
    return floats(build(hf.VideoMAEModel, config), 4, 3, 16, 16)


def vivit() -> Made:
    """ViViT, video, arXiv:2103.15691."""
    config = hf.VivitConfig(**SMALL, image_size=16, num_frames=4, tubelet_size=[2, 4, 4])
    return floats(build(hf.VivitModel, config), 4, 3, 16, 16)
