"""Architectures as data: fields of transformers' config.json, and the switches of ModelConfig they mean."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from proxlm.lm import _layouts
from proxlm.lm._layouts import Layout

Field = tuple[str, Any]  # names in ModelConfig, and the default of transformers: ... where it has to be given


class Architecture(NamedTuple):
    """An architecture of transformers.

    Attributes:
      class_name: of its language model.
      layout: of its tensors.
      fields: field of config.json ↦ its meaning; other fields are refused.
      switches: fields of ModelConfig that are always so, or a function of those before.
      fixed: field of config.json ↦ the values that it may have; none: any.
      aliases: field ↦ values that mean another one.
      windows: layers with the window where `layer_types` does not say: "all"; "above" a number of layers;
        those that do not "rotate"; or all but every n-th.
    """

    class_name: str
    layout: Layout
    fields: Mapping[str, Field]
    switches: Mapping[str, Any] = {}
    fixed: Mapping[str, tuple[Any, ...]] = {}
    aliases: Mapping[str, Mapping[str, str]] = {}
    windows: str | int | None = None


GGUF: dict[str, tuple[str, Layout]] = {
    "llama": ("llama", _layouts.GGUF_LLAMA),
    "qwen2": ("qwen2", _layouts.GGUF_QWEN),
    "qwen3": ("qwen3", _layouts.GGUF_QWEN),
    "gemma": ("gemma", _layouts.GGUF_GEMMA),
    "gemma2": ("gemma2", _layouts.GGUF_GEMMA),
    "gemma3": ("gemma3_text", _layouts.GGUF_GEMMA),
}
"""Architecture of GGUF ↦ that of transformers with the same function, and the layout of its tensors."""

_SHAPE: dict[str, Field] = {
    "vocab_size": ("vocab_size", ...),
    "num_hidden_layers": ("num_layers", ...),
    "hidden_size": ("width", ...),
    "num_attention_heads": ("num_heads", ...),
    "intermediate_size": ("hidden_width", ...),
    "max_position_embeddings": ("max_length", ...),
}
_COMMON: dict[str, Field] = {
    **_SHAPE,
    "num_key_value_heads": ("num_kv_heads", ...),
    "head_dim": ("head_width", None),
    "hidden_act": ("activation", "silu"),
    "rms_norm_eps": ("norm_epsilon", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
    "rope_theta": ("rope_theta", 1e4),
}
_BIAS: dict[str, Field] = {"attention_bias": ("qkv_bias out_bias", False)}
_MLP_BIAS: dict[str, Field] = {"mlp_bias": ("mlp_bias", False)}
_WINDOW: dict[str, Field] = {"sliding_window": ("window", None)}
_TIED: dict[str, Field] = {"tie_word_embeddings": ("tie_embeddings", True)}
_ALL_HEADS: dict[str, Field] = {"num_key_value_heads": ("num_kv_heads", None)}
_root_of_width: Callable[[Mapping[str, Any]], float] = lambda own: own["width"] ** 0.5
_GEMMA_SWITCHES = {"norm": "rms_plus_one", "embedding_scale": _root_of_width}
_GEMMA_FIELDS: dict[str, Field] = {**_COMMON, **_BIAS, **_TIED, "head_dim": ("head_width", ...)}
_GEMMA_2_FIELDS: dict[str, Field] = {
    **{name: field for name, field in _GEMMA_FIELDS.items() if name != "hidden_act"},
    "hidden_activation": ("activation", "gelu_pytorch_tanh"),
    "query_pre_attn_scalar": ("query_scale", 256),
    "sliding_window": ("window", 4096),
}
_GEMMA_2_SWITCHES = {**_GEMMA_SWITCHES, "norm_place": "both"}
_TANH = (None, "gelu_pytorch_tanh")
_LAYER_NORM = {"norm": "layer", "gated": False, "mlp_bias": True}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _layouts.LLAMA, _COMMON | _BIAS | _MLP_BIAS | _ALL_HEADS),
    "mistral": Architecture(
        "MistralForCausalLM", _layouts.LLAMA, _COMMON | {"sliding_window": ("window", 4096)}, windows="all"
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", _layouts.LLAMA, _COMMON | _WINDOW, {"qkv_bias": True}, windows="above"
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        _layouts.LLAMA,
        _COMMON | _WINDOW | _BIAS | {"head_dim": ("head_width", ...)},
        {"qk_norm": "head"},
        windows="above",
    ),
    "smollm3": Architecture(
        "SmolLM3ForCausalLM",
        _layouts.LLAMA,
        _COMMON | _WINDOW | _BIAS | _MLP_BIAS | _TIED | {"rope_theta": ("rope_theta", 2e6)},
        windows="rotate",
    ),
    "gemma": Architecture(
        "GemmaForCausalLM",
        _layouts.LLAMA,
        _GEMMA_FIELDS | {"hidden_act": ("activation", "gelu_pytorch_tanh")},
        _GEMMA_SWITCHES,
        fixed={"hidden_activation": _TANH},
        aliases={"hidden_act": {"gelu": "gelu_pytorch_tanh"}},
    ),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        _layouts.GEMMA_2,
        _GEMMA_2_FIELDS
        | {"attn_logit_softcapping": ("attention_cap", 50.0), "final_logit_softcapping": ("logit_cap", 30.0)},
        _GEMMA_2_SWITCHES,
        fixed={"hidden_act": _TANH},
        windows=2,
    ),
    "gemma3_text": Architecture(
        "Gemma3ForCausalLM",
        _layouts.GEMMA_2,
        _GEMMA_2_FIELDS
        | {
            "rope_theta": ("rope_theta", 1e6),
            "rope_local_base_freq": ("window_rope_theta", 1e4),
            "final_logit_softcapping": ("logit_cap", None),
        },
        _GEMMA_2_SWITCHES | {"qk_norm": "head"},
        fixed={"hidden_act": _TANH, "attn_logit_softcapping": (None,)},  # transformers does not apply it
        windows=6,
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        _layouts.PHI_3,
        _COMMON
        | _ALL_HEADS
        | _WINDOW
        | {"partial_rotary_factor": ("rope_share", 1.0), "rms_norm_eps": ("norm_epsilon", 1e-5)},
        fixed={"original_max_position_embeddings": ()},
        windows="all",
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        _layouts.OLMO_2,
        _COMMON | _ALL_HEADS | _BIAS | {"rms_norm_eps": ("norm_epsilon", 1e-5)},
        {"norm_place": "after", "qk_norm": "whole"},
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        _layouts.GPT_2,
        {
            "vocab_size": ("vocab_size", ...),
            "n_layer": ("num_layers", ...),
            "n_embd": ("width", ...),
            "n_head": ("num_heads", ...),
            "n_inner": ("hidden_width", lambda own: 4 * own["width"]),
            "n_positions": ("max_length", ...),
            "activation_function": ("activation", "gelu_new"),
            "layer_norm_epsilon": ("norm_epsilon", 1e-5),
            **_TIED,
        },
        {**_LAYER_NORM, "positions": "learned", "qkv_bias": True, "out_bias": True},
        fixed={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
        },
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM",
        _layouts.GPT_NEOX,
        {
            **_SHAPE,
            "hidden_act": ("activation", "gelu"),
            "layer_norm_eps": ("norm_epsilon", 1e-5),
            "tie_word_embeddings": ("tie_embeddings", False),
            "use_parallel_residual": ("parallel", True),
            "attention_bias": ("qkv_bias out_bias", True),
            "rope_theta": ("rope_theta", 1e4),
            "partial_rotary_factor": ("rope_share", 0.25),
        },
        _LAYER_NORM,
    ),
}
"""Value of `model_type` in config.json ↦ the architecture; a config is saved as the first that fits it."""

# Names that fields had in other versions of transformers.
RENAMED = {"gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}}

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
"""Name of an activation in transformers ↦ in ModelConfig; of several, the first is written."""

FIXED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
    "use_bidirectional_attention": (None, False),
    "rope_interleaved": (None, False),
    "use_mrope": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "pruned_heads": (None, {}),
}
"""Fields that any architecture may have, with the values that ask for nothing."""

# Fields without a part in the function: of training, or of transformers' own interface.
IGNORED = frozenset(
    "_name_or_path architectures attention_dropout attention_probs_dropout_prob attn_implementation "
    "attn_pdrop auto_map bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout "
    "dtype embd_pdrop eos_token_id hidden_dropout id2label initializer_range is_decoder is_llama_config "
    "label2id model_type n_ctx output_attentions output_hidden_states pad_token_id pretraining_tp "
    "problem_type resid_pdrop return_dict return_dict_in_generate sep_token_id summary_activation "
    "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params "
    "torch_dtype torchscript transformers.js_config transformers_version unk_token_id unsloth_fixed "
    "unsloth_version use_cache _attn_implementation_autoset _sliding_window_pattern".split()
)
