"""Boxes, masks, depth and keypoints: transformers' dense vision models with small configurations."""

from __future__ import annotations

from typing import Any

import torch

from edgelora_tools.zoo.samples import SMALL, Made, build, hf, pixels

_RESNET: dict[str, Any] = {
    "embedding_size": 16, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic",
}  # fmt: skip
_DETR: dict[str, Any] = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 32, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "num_queries": 6, "num_labels": 3,
}  # fmt: skip


def segformer() -> Made:
    """SegFormer, arXiv:2105.15203."""
    config = hf.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=32, num_labels=3,
    )  # fmt: skip
    return pixels(build(hf.SegformerForSemanticSegmentation, config), 32)


def upernet() -> Made:
    """UPerNet on ConvNeXt, arXiv:1807.10221."""
    backbone = hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=[
        "stage1", "stage2", "stage3", "stage4",
    ])  # fmt: skip
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=3
    )
    return pixels(build(hf.UperNetForSemanticSegmentation, config, attention=None), 64)


def mobilevit_deeplab() -> Made:
    """DeepLabv3 on MobileViT, dilated convolutions, arXiv:1706.05587."""
    config = hf.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 16, 24, 32], num_attention_heads=2,
        aspp_out_channels=16, atrous_rates=[1, 2, 3], num_labels=3,
    )  # fmt: skip
    return pixels(build(hf.MobileViTForSemanticSegmentation, config), 64)


def dpt() -> Made:
    """DPT, depth from a ViT, arXiv:2103.13413."""
    config = hf.DPTConfig(
        **SMALL | {"num_hidden_layers": 4}, image_size=32, patch_size=8, is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, use_auxiliary_head=False, initializer_range=0.1,
    )  # fmt: skip
    module = build(hf.DPTForDepthEstimation, config)
    torch.nn.init.ones_(module.head.head[4].bias)  # its last ReLU is open
    return pixels(module, 32)


def depth_anything() -> Made:
    """Depth Anything, arXiv:2401.10891."""
    backbone = hf.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=8,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, head_hidden_size=8,
    )  # fmt: skip
    return pixels(build(hf.DepthAnythingForDepthEstimation, config, attention=None), 32)


def glpn() -> Made:
    """GLPN, arXiv:2201.07436."""
    config = hf.GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 2, 2], mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
    )  # fmt: skip
    return pixels(build(hf.GLPNForDepthEstimation, config), 64)


def detr() -> Made:
    """DETR, arXiv:2005.12872."""
    config = hf.DetrConfig(**_DETR, backbone_config=hf.ResNetConfig(**_RESNET, out_features=["stage4"]))
    return pixels(build(hf.DetrForObjectDetection, config), 64)


def conditional_detr() -> Made:
    """Conditional DETR, arXiv:2108.06152."""
    config = hf.ConditionalDetrConfig(**_DETR, backbone_config=hf.ResNetConfig(**_RESNET, out_features=["stage4"]))
    return pixels(build(hf.ConditionalDetrForObjectDetection, config), 64)


def deformable_detr() -> Made:
    """Deformable DETR, sampling by GridSample, arXiv:2010.04159."""
    backbone = hf.ResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"])
    config = hf.DeformableDetrConfig(
        **_DETR | {"decoder_layers": 2},
        backbone_config=backbone,
        num_feature_levels=3,
        encoder_n_points=2,
        decoder_n_points=2,
    )
    return pixels(build(hf.DeformableDetrForObjectDetection, config), 64)


def table_transformer() -> Made:
    """Table Transformer, arXiv:2110.00061."""
    config = hf.TableTransformerConfig(**_DETR, backbone_config=hf.ResNetConfig(**_RESNET, out_features=["stage4"]))
    return pixels(build(hf.TableTransformerForObjectDetection, config), 64)


def rt_detr() -> Made:
    """RT-DETR, arXiv:2304.08069."""
    backbone = hf.RTDetrResNetConfig(**_RESNET, out_features=["stage2", "stage3", "stage4"])
    config = hf.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], encoder_layers=1,
        encoder_ffn_dim=64, encoder_attention_heads=4, d_model=32, num_queries=6, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=4, decoder_n_points=2, num_denoising=0,
        hidden_expansion=0.5, num_labels=3,
    )  # fmt: skip
    return pixels(build(hf.RTDetrForObjectDetection, config, attention=None), 64)


def yolos() -> Made:
    """YOLOS, boxes from a ViT, arXiv:2106.00666."""
    config = hf.YolosConfig(**SMALL, image_size=[16, 16], patch_size=4, num_detection_tokens=4, num_labels=3)
    return pixels(build(hf.YolosForObjectDetection, config), 16)


def maskformer() -> Made:
    """MaskFormer on Swin, arXiv:2107.06278."""
    backbone = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = hf.DetrConfig(**_DETR, backbone_config=hf.ResNetConfig(**_RESNET))
    config = hf.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16, num_labels=3
    )
    return pixels(build(hf.MaskFormerModel, config, attention=None), 64)


def mask2former() -> Made:
    """Mask2Former on Swin, arXiv:2112.01527."""
    backbone = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=64, num_queries=6, num_labels=3,
    )  # fmt: skip
    return pixels(build(hf.Mask2FormerModel, config, attention=None), 64)


def vitmatte() -> Made:
    """ViTMatte, arXiv:2305.15272."""
    backbone = hf.VitDetConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=16,
        num_channels=4, window_block_indices=[], residual_block_indices=[], out_features=["stage2"],
    )  # fmt: skip
    config = hf.VitMatteConfig(
        backbone_config=backbone,
        hidden_size=32,
        convstream_hidden_sizes=[8, 16, 16],
        fusion_hidden_sizes=[32, 16, 16, 8],
    )
    return pixels(build(hf.VitMatteForImageMatting, config, attention=None), 32, channels=4)


def vitpose() -> Made:
    """ViTPose, keypoint heat maps, arXiv:2204.12484."""
    backbone = hf.VitPoseBackboneConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=[32, 32], patch_size=[8, 8],
        out_indices=[2],
    )  # fmt: skip
    config = hf.VitPoseConfig(backbone_config=backbone, num_labels=3, use_simple_decoder=False)
    return pixels(build(hf.VitPoseForPoseEstimation, config, attention=None), 32)


def sam_encoder() -> Made:
    """SAM's image encoder, decomposed relative positions, arXiv:2304.02643."""
    config = hf.SamVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_dim=64, image_size=32, patch_size=4,
        output_channels=16, window_size=4, global_attn_indexes=[1], num_pos_feats=8,
    )  # fmt: skip
    return pixels(build(hf.SamVisionModel, config), 32)
