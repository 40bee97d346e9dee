"""Names of tensors in files of transformers and of GGUF, and the order of their entries, as data."""

from collections.abc import Mapping
from typing import NamedTuple


class Layout(NamedTuple):
    """Names of the tensors in a family of files, and the order of their entries.

    Attributes:
      modules: part of the model ↦ its name, with {} for the number of the layer.
      transposed: whether a matrix is stored as it multiplies, y = W·x with W `[out, in]`.
      row_order: of queries and keys: "halves" as RoPE pairs them here, (i, i + d/2), or "neighbours",
        (2i, 2i + 1); or "by_head" where each head has its query, key and value together.
      scale_offset: what the scales of norms have more than here.
    """

    modules: Mapping[str, str]
    transposed: bool = True
    row_order: str = "halves"
    scale_offset: float = 0.0


def _modules(outer: str, block: str, **parts: str) -> dict[str, str]:
    """Names of modules, from those outside of the layers (one string) and those of a layer by part."""
    names = dict(zip(("embedding", "norm", "head"), outer.split(), strict=True))
    return names | {part: f"{block}.{{}}.{name}" for part, name in parts.items()}


_QKV = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
_QK_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_GATED = {"gate": "mlp.gate_proj", "up": "mlp.up_proj"}
_OUT = {"out": "self_attn.o_proj", "down": "mlp.down_proj"}
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_OUTER = ("model.embed_tokens model.norm lm_head", "model.layers")
LLAMA = Layout(_modules(*_OUTER, **_NORMS, **_QKV, **_QK_NORMS, **_OUT, **_GATED))
GEMMA_2 = Layout(_modules(*_OUTER, **_FOUR_NORMS, **_QKV, **_QK_NORMS, **_OUT, **_GATED))
OLMO_2 = Layout(
    _modules(
        *_OUTER,
        **_QKV,
        **_QK_NORMS,
        **_OUT,
        **_GATED,
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
)
PHI_3 = Layout(_modules(*_OUTER, **_NORMS, **_OUT, qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj"))
GPT_2 = Layout(
    _modules(
        "transformer.wte transformer.ln_f lm_head",
        "transformer.h",
        attention_norm="ln_1",
        qkv="attn.c_attn",
        out="attn.c_proj",
        mlp_norm="ln_2",
        up="mlp.c_fc",
        down="mlp.c_proj",
    )
    | {"positions": "transformer.wpe"},
    transposed=False,
)
GPT_NEOX = Layout(
    _modules(
        "gpt_neox.embed_in gpt_neox.final_layer_norm embed_out",
        "gpt_neox.layers",
        **_NORMS,
        qkv="attention.query_key_value",
        out="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    ),
    row_order="by_head",
)
_GGUF = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "out": "attn_output",
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_GGUF_MODULES = _modules("token_embd output_norm output", "blk", **_GGUF)
GGUF_LLAMA = Layout(_GGUF_MODULES, row_order="neighbours")
GGUF_QWEN = Layout(_GGUF_MODULES)
GGUF_GEMMA = Layout(_GGUF_MODULES, scale_offset=1.0)

# Buffers that some files hold beside the weights; they follow from the config.
BUFFERS = tuple(
    f".{name}"
    for name in (
        "rotary_emb.inv_freq attn.bias attn.masked_bias attention.bias attention.masked_bias".split()
    )
)
