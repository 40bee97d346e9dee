"""Fields of config.json as models on the Hugging Face Hub have them, and their meaning."""

from proxlm import lm


def _shape(kind, vocab_size, width, depth, heads, kv_heads, hidden, length, **fields):
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("intermediate_size", "max_position_embeddings")
    sizes = dict(zip(names, (vocab_size, width, depth, heads, kv_heads, hidden, length), strict=True))
    return {"model_type": kind, "torch_dtype": "bfloat16", "use_cache": True, **sizes, **fields}


_LLAMA_3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
_QWEN = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "hidden_act": "silu"}
_TANH = "gelu_pytorch_tanh"
_GEMMA = {"norm": "rms_plus_one", "activation": "gelu_tanh", "tie_embeddings": True, "head_width": 256}
_EVERY_FOURTH = tuple((i + 1) % 4 != 0 for i in range(36))

CONFIGS = {
    "Llama 3.2 1B": (
        _shape("llama", 128256, 2048, 16, 32, 8, 8192, 131072, rope_theta=5e5, tie_word_embeddings=True)
        | {
            "rope_scaling": _LLAMA_3 | {"original_max_position_embeddings": 8192},
            "head_dim": 64,
            "mlp_bias": False,
        },
        {
            "rope_scaling": lm.RopeScaling("llama3", 32.0, 8192, 1.0, 4.0),
            "tie_embeddings": True,
            "rope_theta": 5e5,
        },
    ),
    "Llama 2 7B": (
        _shape(
            "llama",
            32000,
            4096,
            32,
            32,
            32,
            11008,
            4096,
            rms_norm_eps=1e-5,
            rope_scaling=None,
            pretraining_tp=1,
        ),
        {"rope_theta": 1e4, "tie_embeddings": False, "head_width": 128, "norm_epsilon": 1e-5, "window": None},
    ),
    "Mistral 7B": (
        _shape("mistral", 32000, 4096, 32, 32, 8, 14336, 32768, sliding_window=4096, rms_norm_eps=1e-5),
        {"window": 4096, "window_layers": None, "num_kv_heads": 8},
    ),
    "Mistral 7B, later": (
        _shape("mistral", 32768, 4096, 32, 32, 8, 14336, 32768, sliding_window=None, rope_theta=1e6),
        {"window": None, "rope_theta": 1e6},
    ),
    "Qwen 2.5 7B": (
        _shape("qwen2", 152064, 3584, 28, 28, 4, 18944, 32768, rope_theta=1e6, rope_scaling=_YARN) | _QWEN,
        {
            "qkv_bias": True,
            "out_bias": False,
            "window": None,
            "rope_scaling": lm.RopeScaling("yarn", 4.0, 32768),
        },
    ),
    "Qwen 2, windows above": (
        _shape("qwen2", 152064, 512, 6, 8, 4, 64, 32768)
        | _QWEN
        | {"use_sliding_window": True, "max_window_layers": 4},
        {"window": 131072, "window_layers": (False,) * 4 + (True,) * 2},
    ),
    "Qwen 3 0.6B": (
        _shape(
            "qwen3",
            151936,
            1024,
            28,
            16,
            8,
            3072,
            40960,
            head_dim=128,
            attention_bias=False,
            rope_scaling=None,
        )
        | _QWEN
        | {"sliding_window": None},
        {"qk_norm": "head", "head_width": 128, "qkv_bias": False, "window": None},
    ),
    "SmolLM3 3B": (
        _shape("smollm3", 128256, 2048, 36, 16, 4, 11008, 65536, no_rope_layer_interval=4, rope_theta=5e6)
        | {"layer_types": ["full_attention"] * 36, "use_sliding_window": False, "sliding_window": None},
        {"rope_layers": _EVERY_FOURTH, "tie_embeddings": True, "rope_theta": 5e6, "window": None},
    ),
    "Gemma 2B": (
        _shape(
            "gemma",
            256000,
            2048,
            18,
            8,
            1,
            16384,
            8192,
            head_dim=256,
            hidden_act="gelu",
            hidden_activation=None,
        ),
        _GEMMA | {"embedding_scale": 2048**0.5, "norm_place": "before", "query_scale": None},
    ),
    "Gemma 2 27B": (
        _shape(
            "gemma2",
            256000,
            4608,
            46,
            32,
            16,
            36864,
            8192,
            head_dim=128,
            hidden_act=_TANH,
            sliding_window=4096,
        )
        | {"hidden_activation": _TANH, "query_pre_attn_scalar": 144, "cache_implementation": "hybrid"}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _GEMMA
        | {"head_width": 128, "query_scale": 1 / 12, "attention_cap": 50.0, "logit_cap": 30.0}
        | {"norm_place": "both", "window": 4096, "window_layers": (True, False) * 23},
    ),
    "Gemma 3 4B, its text": (
        _shape("gemma3_text", 262208, 2560, 34, 8, 4, 10240, 131072, head_dim=256, rope_theta=1e6)
        | {"rope_local_base_freq": 1e4, "sliding_window": 1024, "sliding_window_pattern": 6}
        | {"hidden_activation": _TANH, "query_pre_attn_scalar": 256, "attn_logit_softcapping": None}
        | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        _GEMMA
        | {
            "window_layers": tuple((i + 1) % 6 != 0 for i in range(34)),
            "qk_norm": "head",
            "attention_cap": None,
        }
        | {
            "window_rope_theta": 1e4,
            "rope_scaling": lm.RopeScaling("linear", 8.0, 131072),
            "query_scale": None,
        },
    ),
    "Phi-3 mini 4k": (
        _shape("phi3", 32064, 3072, 32, 32, 32, 8192, 4096, rope_scaling=None, sliding_window=2047)
        | {"original_max_position_embeddings": 4096, "auto_map": {"AutoConfig": "a"}, "resid_pdrop": 0.0},
        {"window": 2047, "rope_share": 1.0, "activation": "silu"},
    ),
    "OLMo 2 1B": (
        _shape("olmo2", 100352, 2048, 16, 16, 16, 8192, 4096, rope_theta=5e5, rms_norm_eps=1e-6),
        {"norm_place": "after", "qk_norm": "whole", "rope_theta": 5e5, "norm_epsilon": 1e-6},
    ),
    "GPT-2": (
        {
            "model_type": "gpt2",
            "vocab_size": 50257,
            "n_layer": 12,
            "n_embd": 768,
            "n_head": 12,
            "n_positions": 1024,
        }
        | {"n_ctx": 1024, "activation_function": "gelu_new", "task_specific_params": {}, "resid_pdrop": 0.1},
        {
            "hidden_width": 3072,
            "positions": "learned",
            "norm": "layer",
            "activation": "gelu_tanh",
            "gated": False,
        }
        | {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "tie_embeddings": True},
    ),
    "Pythia 70M": (
        {"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 512, "num_hidden_layers": 6}
        | {"num_attention_heads": 8, "intermediate_size": 2048, "max_position_embeddings": 2048}
        | {"rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "hidden_act": "gelu"},
        {"rope_share": 0.25, "parallel": True, "gated": False, "activation": "gelu", "tie_embeddings": False},
    ),
}
"""Model ↦ its fields, and what they mean in ModelConfig."""
