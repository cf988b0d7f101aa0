"""Sound: transformers' speech and audio models with small configurations."""

from __future__ import annotations

from typing import Any

import torch

from edgelora_tools.zoo.samples import ROWS, SMALL, SPECIAL, VOCABULARY, Made, build, floats, hf, ids

_WAVE: dict[str, Any] = {
    **SMALL, "vocab_size": VOCABULARY, "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}  # fmt: skip


def _wave(module: torch.nn.Module, length: int = 1600) -> Made:
    return floats(module, length, name="input_values")


def wav2vec2() -> Made:
    """wav2vec 2.0, arXiv:2006.11477."""
    return _wave(build(hf.Wav2Vec2Model, hf.Wav2Vec2Config(**_WAVE)))


def hubert() -> Made:
    """HuBERT, arXiv:2106.07447."""
    return _wave(build(hf.HubertModel, hf.HubertConfig(**_WAVE)))


def wavlm() -> Made:
    """WavLM, gated relative positions, arXiv:2110.13900."""
    config = hf.WavLMConfig(**_WAVE, num_buckets=16, max_bucket_distance=32)
    return _wave(build(hf.WavLMModel, config, attention=None))


def unispeech() -> Made:
    """UniSpeech, arXiv:2101.07597."""
    return _wave(build(hf.UniSpeechModel, hf.UniSpeechConfig(**_WAVE)))


def data2vec_audio() -> Made:
    """data2vec for speech, arXiv:2202.03555."""
    return _wave(build(hf.Data2VecAudioModel, hf.Data2VecAudioConfig(**_WAVE)))


def sew() -> Made:
    """SEW, squeezed sequences, arXiv:2109.06870."""
    return _wave(build(hf.SEWModel, hf.SEWConfig(**_WAVE, squeeze_factor=2)))


def sew_d() -> Made:
    """SEW-D, with DeBERTa's attention, arXiv:2109.06870."""
    config = hf.SEWDConfig(
        **_WAVE, squeeze_factor=2, max_position_embeddings=64, position_buckets=8, relative_attention=True
    )
    return _wave(build(hf.SEWDModel, config, attention=None))


def wav2vec2_conformer() -> Made:
    """wav2vec 2.0 with Conformer blocks, arXiv:2010.05171."""
    config = hf.Wav2Vec2ConformerConfig(**_WAVE, conv_depthwise_kernel_size=3, position_embeddings_type="relative")
    return _wave(build(hf.Wav2Vec2ConformerModel, config, attention=None))


def wav2vec2_bert() -> Made:
    """W2v-BERT 2.0 on filter banks, arXiv:2312.05187."""
    config = hf.Wav2Vec2BertConfig(
        **SMALL, vocab_size=VOCABULARY, feature_projection_input_dim=20, conv_depthwise_kernel_size=3,
        mask_time_prob=0.0, left_max_position_embeddings=4, right_max_position_embeddings=4,
    )  # fmt: skip
    module = build(hf.Wav2Vec2BertModel, config, attention=None)
    return floats(module, 24, 20, name="input_features", dynamic={1: "frames"})


def whisper() -> Made:
    """Whisper, arXiv:2212.04356."""
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY, **SPECIAL, num_mel_bins=20, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=24, max_target_positions=32, decoder_start_token_id=1, suppress_tokens=[],
        begin_suppress_tokens=[],
    )  # fmt: skip
    module, inputs, axes = floats(build(hf.WhisperModel, config), 20, 48, name="input_features")
    return (
        module,
        inputs | {"decoder_input_ids": ids(length=6)},
        axes | {"decoder_input_ids": {0: "batch", 1: "target"}},
    )


def speech_to_text() -> Made:
    """S2T, arXiv:2010.05171."""
    config = hf.Speech2TextConfig(
        vocab_size=VOCABULARY, **SPECIAL, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=64,
        max_target_positions=32, input_feat_per_channel=20, conv_channels=16, conv_kernel_sizes=(3, 3),
        decoder_start_token_id=1,
    )  # fmt: skip
    module, inputs, axes = floats(build(hf.Speech2TextModel, config), 24, 20, name="input_features")
    return (
        module,
        inputs | {"decoder_input_ids": ids(length=6)},
        axes | {"decoder_input_ids": {0: "batch", 1: "target"}},
    )


def moonshine() -> Made:
    """Moonshine, arXiv:2410.15608."""
    config = hf.MoonshineConfig(
        **SPECIAL, vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        max_position_embeddings=64, decoder_start_token_id=1,
    )  # fmt: skip
    module, inputs, axes = _wave(build(hf.MoonshineModel, config), 4000)
    return (
        module,
        inputs | {"decoder_input_ids": ids(length=6)},
        axes | {"decoder_input_ids": {0: "batch", 1: "target"}},
    )


def audio_spectrogram_transformer() -> Made:
    """AST, arXiv:2104.01778."""
    config = hf.ASTConfig(**SMALL, patch_size=4, frequency_stride=4, time_stride=4, max_length=24, num_mel_bins=16)
    return floats(build(hf.ASTModel, config), 24, 16, name="input_values")


def clap_audio() -> Made:
    """CLAP's audio tower (HTS-AT), arXiv:2211.06687."""
    config = hf.ClapAudioConfig(
        spec_size=32, num_mel_bins=8, patch_size=2, patch_stride=[2, 2], window_size=4, hidden_size=32,
        patch_embeds_hidden_size=16, depths=[1, 1], num_attention_heads=[2, 4], num_hidden_layers=2,
        enable_fusion=False, projection_dim=16,
    )  # fmt: skip
    module = build(hf.ClapAudioModel, config, attention=None)
    return floats(module, 1, 128, 8, name="input_features")


def encodec_decoder() -> Made:
    """EnCodec's decoder with its LSTM, arXiv:2210.13438."""
    config = hf.EncodecConfig(
        num_filters=4, hidden_size=16, num_residual_layers=1, upsampling_ratios=[4, 2], num_lstm_layers=1,
        codebook_size=16, codebook_dim=16, kernel_size=3, last_kernel_size=3,
    )  # fmt: skip

    def make() -> torch.nn.Module:
        return hf.EncodecModel(config).decoder

    return floats(build(make), 16, 10, name="hidden_states")


def univnet() -> Made:
    """UnivNet, a vocoder of predicted kernels, arXiv:2106.07889."""
    config = hf.UnivNetConfig(
        model_in_channels=8, model_hidden_channels=8, num_mel_bins=8, resblock_kernel_sizes=[3],
        resblock_stride_sizes=[4], resblock_dilation_sizes=[[1, 3]], kernel_predictor_num_blocks=1,
        kernel_predictor_hidden_channels=8,
        kernel_predictor_conv_size=3,
    )  # fmt: skip
    module, inputs, axes = floats(build(hf.UnivNetModel, config, attention=None), 12, 8, name="input_features")
    noise = torch.randn(ROWS, 12, 8, generator=torch.Generator().manual_seed(3))
    return module, inputs | {"noise_sequence": noise}, axes | {"noise_sequence": {0: "batch"}}


def vits_text_encoder() -> Made:
    """The text encoder of VITS, relative positions in windows, arXiv:2106.06103."""
    config = hf.VitsConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, window_size=4,
        flow_size=16, spectrogram_bins=9,
    )  # fmt: skip

    class Encoder(torch.nn.Module):
        """The encoder with the mask that it needs, made of ones."""

        def __init__(self) -> None:
            super().__init__()
            self.text_encoder = hf.VitsModel(config).text_encoder

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            mask = torch.ones_like(input_ids).unsqueeze(-1).float()
            return self.text_encoder(input_ids=input_ids, padding_mask=mask).last_hidden_state

    return build(Encoder), {"input_ids": ids()}, {"input_ids": {0: "batch", 1: "sequence"}}


def time_series_patches() -> Made:
    """PatchTST, series cut into patches, arXiv:2211.14730."""
    config = hf.PatchTSTConfig(
        num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, d_model=32, num_hidden_layers=2,
        num_attention_heads=4, ffn_dim=64, prediction_length=4,
    )  # fmt: skip
    module = build(hf.PatchTSTForPrediction, config, attention=None)
    return floats(module, 32, 3, name="past_values")
