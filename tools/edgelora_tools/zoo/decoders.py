"""Decoders: transformers' causal language models without their heads, and state-space ones."""

from __future__ import annotations

from typing import Any

from edgelora_tools.zoo.samples import SMALL, SPECIAL, TEXT, VOCABULARY, Made, build, hf, text

_GROUPED: dict[str, Any] = {**SMALL, **TEXT, **SPECIAL, "num_key_value_heads": 2}
_EXPERTS = "batched_mm"  # each token gathers its experts: the exporters know no grouped products


def gpt2() -> Made:
    """GPT-2 (Radford et al. 2019)."""
    return text(
        build(hf.GPT2Model, hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    )


def openai_gpt() -> Made:
    """GPT (Radford et al. 2018)."""
    config = hf.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return text(build(hf.OpenAIGPTModel, config, attention=None))


def gpt_bigcode() -> Made:
    """SantaCoder, multi-query attention, arXiv:2301.03988."""
    config = hf.GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return text(build(hf.GPTBigCodeModel, config))


def gpt_neo() -> Made:
    """GPT-Neo, local attention in every other layer (Black et al. 2021)."""
    config = hf.GPTNeoConfig(
        **TEXT, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], window_size=4,
    )  # fmt: skip
    return text(build(hf.GPTNeoModel, config))


def gpt_neox() -> Made:
    """GPT-NeoX and Pythia, arXiv:2204.06745."""
    return text(build(hf.GPTNeoXModel, hf.GPTNeoXConfig(**SMALL, **TEXT)))


def gptj() -> Made:
    """GPT-J (Wang and Komatsuzaki 2021)."""
    config = hf.GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    return text(build(hf.GPTJModel, config))


def codegen() -> Made:
    """CodeGen, arXiv:2203.13474."""
    config = hf.CodeGenConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_ctx=64, rotary_dim=4
    )
    return text(build(hf.CodeGenModel, config, attention=None))


def ctrl() -> Made:
    """CTRL, arXiv:1909.05858."""
    config = hf.CTRLConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, dff=64)
    return text(build(hf.CTRLModel, config, attention=None))


def opt() -> Made:
    """OPT, arXiv:2205.01068."""
    config = hf.OPTConfig(
        **TEXT, **SPECIAL, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
        word_embed_proj_dim=32,
    )  # fmt: skip
    return text(build(hf.OPTModel, config))


def bloom() -> Made:
    """BLOOM, ALiBi positions, arXiv:2211.05100."""
    return text(build(hf.BloomModel, hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)))


def llama() -> Made:
    """Llama, arXiv:2302.13971."""
    return text(build(hf.LlamaModel, hf.LlamaConfig(**_GROUPED)))


def mistral() -> Made:
    """Mistral, sliding windows, arXiv:2310.06825."""
    return text(build(hf.MistralModel, hf.MistralConfig(**_GROUPED, sliding_window=4)))


def mixtral() -> Made:
    """Mixtral, a mixture of experts, arXiv:2401.04088."""
    return text(
        build(
            hf.MixtralModel,
            hf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
            experts_implementation=_EXPERTS,
        )
    )


def qwen2() -> Made:
    """Qwen 2, arXiv:2407.10671."""
    return text(build(hf.Qwen2Model, hf.Qwen2Config(**_GROUPED)))


def qwen2_moe() -> Made:
    """Qwen 2, a mixture of experts with a shared one, arXiv:2407.10671."""
    config = hf.Qwen2MoeConfig(
        **_GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32
    )
    return text(build(hf.Qwen2MoeModel, config, experts_implementation=_EXPERTS))


def qwen3() -> Made:
    """Qwen 3, normalized queries and keys, arXiv:2505.09388."""
    return text(build(hf.Qwen3Model, hf.Qwen3Config(**_GROUPED, head_dim=8)))


def gemma() -> Made:
    """Gemma, arXiv:2403.08295."""
    return text(build(hf.GemmaModel, hf.GemmaConfig(**_GROUPED, head_dim=8)))


def gemma2() -> Made:
    """Gemma 2, soft-capped logits, arXiv:2408.00118."""
    return text(build(hf.Gemma2Model, hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=4)))


def gemma3() -> Made:
    """Gemma 3, the text model, arXiv:2503.19786."""
    config = hf.Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=4)
    return text(build(hf.Gemma3TextModel, config))


def phi() -> Made:
    """Phi-1.5, arXiv:2309.05463."""
    return text(build(hf.PhiModel, hf.PhiConfig(**SMALL, **TEXT, **SPECIAL)))


def phi3() -> Made:
    """Phi-3, arXiv:2404.14219."""
    return text(build(hf.Phi3Model, hf.Phi3Config(**_GROUPED)))


def falcon() -> Made:
    """Falcon, multi-query attention, arXiv:2311.16867."""
    config = hf.FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    return text(build(hf.FalconModel, config))


def mpt() -> Made:
    """MPT (MosaicML 2023)."""
    return text(
        build(hf.MptModel, hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64), None)
    )


def stablelm() -> Made:
    """StableLM, arXiv:2402.17834."""
    return text(build(hf.StableLmModel, hf.StableLmConfig(**_GROUPED)))


def olmo() -> Made:
    """OLMo, normalization without weights, arXiv:2402.00838."""
    return text(build(hf.OlmoModel, hf.OlmoConfig(**_GROUPED)))


def olmo2() -> Made:
    """OLMo 2, normalization last, arXiv:2501.00656."""
    return text(build(hf.Olmo2Model, hf.Olmo2Config(**_GROUPED)))


def cohere() -> Made:
    """Command R, parallel blocks (Cohere 2024)."""
    return text(build(hf.CohereModel, hf.CohereConfig(**_GROUPED)))


def starcoder2() -> Made:
    """StarCoder 2, arXiv:2402.19173."""
    return text(build(hf.Starcoder2Model, hf.Starcoder2Config(**_GROUPED)))


def granite() -> Made:
    """Granite, scaled residuals, arXiv:2408.13359."""
    return text(build(hf.GraniteModel, hf.GraniteConfig(**_GROUPED)))


def smollm3() -> Made:
    """SmolLM 3, layers without positions (Hugging Face 2025)."""
    return text(build(hf.SmolLM3Model, hf.SmolLM3Config(**_GROUPED, no_rope_layer_interval=2)))


def glm() -> Made:
    """GLM-4, arXiv:2406.12793."""
    return text(build(hf.GlmModel, hf.GlmConfig(**_GROUPED, head_dim=8)))


def persimmon() -> Made:
    """Persimmon, squared ReLU (Adept 2023)."""
    return text(build(hf.PersimmonModel, hf.PersimmonConfig(**SMALL, **TEXT, **SPECIAL)))


def nemotron() -> Made:
    """Nemotron, arXiv:2402.16819."""
    return text(build(hf.NemotronModel, hf.NemotronConfig(**_GROUPED, head_dim=8)))


def helium() -> Made:
    """Helium (Kyutai 2025)."""
    return text(build(hf.HeliumModel, hf.HeliumConfig(**_GROUPED, head_dim=8)))


def deepseek_v3() -> Made:
    """DeepSeek V3, latent attention, arXiv:2412.19437; dense layers alone."""
    config = hf.DeepseekV3Config(
        **_GROUPED | {"num_key_value_heads": 4}, first_k_dense_replace=2, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return text(build(hf.DeepseekV3Model, config))


def lfm2() -> Made:
    """LFM 2, short convolutions and attention (Liquid AI 2025)."""
    config = hf.Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    return text(build(hf.Lfm2Model, config))


def xglm() -> Made:
    """XGLM, arXiv:2112.10668."""
    config = hf.XGLMConfig(**TEXT, **SPECIAL, d_model=32, num_layers=2, attention_heads=4, ffn_dim=64)
    return text(build(hf.XGLMModel, config))


def biogpt() -> Made:
    """BioGPT, arXiv:2210.10341."""
    return text(build(hf.BioGptModel, hf.BioGptConfig(**SMALL, **TEXT)))


def mamba() -> Made:
    """Mamba, a selective state space, arXiv:2312.00752; sequences of one length."""
    config = hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    return text(build(hf.MambaModel, config, attention=None), mask=False, length=8)


def rwkv() -> Made:
    """RWKV, arXiv:2305.13048; sequences of one length."""
    config = hf.RwkvConfig(
        vocab_size=VOCABULARY, context_length=16, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
    )
    return text(build(hf.RwkvModel, config, attention=None), mask=False, length=8)


def imagegpt() -> Made:
    """Image GPT (Chen et al. 2020)."""
    config = hf.ImageGPTConfig(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return text(build(hf.ImageGPTModel, config, attention=None), mask=False)
