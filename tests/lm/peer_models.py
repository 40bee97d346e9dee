"""Small random models of every architecture, and what transformers makes of them.

Weights follow from the name and shape of a tensor alone, so that a file of the fields of config.json and of
logits is all that a test needs. Run by itself, it writes that file: python -m tests.lm.peer_models
"""

import json
import pathlib
import zlib

import numpy as np

PATH = pathlib.Path(__file__).parent / "vectors" / "architectures.json"
LENGTH, PADDING = 24, (0, 5, 11)
SIZES = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.01,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FIRST = {"original_max_position_embeddings": 8}
FIRST_16 = {"original_max_position_embeddings": 16}
FIRST_32 = {"original_max_position_embeddings": 32}
WIDE = {"head_dim": 32}
GPT_2 = {
    "vocab_size": 31,
    "n_layer": 3,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def scaled(kind, **parts):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, **parts}}


CASES = {
    "llama": ("Llama", {"head_dim": 16}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama, linear": ("Llama", scaled("linear")),
    "llama, dynamic": ("Llama", scaled("dynamic") | {"max_position_embeddings": 8}),
    "llama, llama3": ("Llama", scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **FIRST)),
    "llama, yarn": ("Llama", WIDE | scaled("yarn", beta_fast=2.0, **FIRST_32)),
    "llama, yarn scaled": (
        "Llama",
        WIDE | scaled("yarn", mscale=1.5, mscale_all_dim=0.5, truncate=False, **FIRST_32),
    ),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24, **LAYERS}),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 5.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            **LAYERS,
        },
    ),
    "phi3": (
        "Phi3",
        {
            "sliding_window": 7,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3, longrope": (
        "Phi3",
        FIRST_16
        | scaled(
            "longrope",
            factor=None,
            short_factor=[1.0, 1.5],
            long_factor=[2.0, 3.5],
            partial_rotary_factor=0.5,
        ),
    ),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2}),
    "gpt2": ("GPT2", {}),
    "gpt_neox": ("GPTNeoX", {"hidden_size": 64}),
    "gpt_neox, one after the other": ("GPTNeoX", {"use_parallel_residual": False, "hidden_size": 64}),
}


def weights(name, shape):
    """The values of a tensor, float32."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape, scale=0.3)
    is_scale = name.endswith("weight") and len(shape) == 1
    return (values + is_scale).astype(np.float32)


def inputs(length=LENGTH):
    """Tokens `[3, T]` and a mask, False on the left of two rows."""
    tokens = np.random.default_rng(0).integers(SIZES["vocab_size"], size=(len(PADDING), length))
    mask = np.arange(length) >= np.array(PADDING)[:, None]
    return tokens, mask


def build(case):
    """The model of transformers."""
    import torch
    import transformers

    name, changes = CASES[case]
    fields = GPT_2 if name == "GPT2" else SIZES | changes
    if name == "GPTNeoX":
        own = {"num_key_value_heads", "rms_norm_eps"}
        fields = {key: value for key, value in fields.items() if key not in own} | {"layer_norm_eps": 0.01}
    config = getattr(transformers, f"{name}Config")(**fields)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            key = key.replace("lm_head", "embed_out") if name == "GPTNeoX" else key  # as its files have it
            tensor.copy_(torch.from_numpy(weights(key, tuple(tensor.shape))))
    return model


def logits(model, tokens, mask):
    """All logits at once, `[3, T, V]`; meaningless where the mask is False."""
    import torch

    with torch.no_grad():
        positions = torch.from_numpy(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
        given = {"attention_mask": torch.from_numpy(mask.astype(int)), "position_ids": positions}
        if model.config.model_type == "gpt2":
            given["use_cache"] = False
        return model(torch.from_numpy(tokens), **given).logits.numpy()


def logits_by_steps(model, tokens, mask, prompt):
    """The logits from the last of a prompt on, one token after the other with a cache."""
    import torch

    found, cache, start = [], None, 0
    positions = torch.from_numpy(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    with torch.no_grad():
        for end in range(prompt, tokens.shape[1] + 1):
            part = slice(start, end)
            result = model(
                torch.from_numpy(tokens[:, part]),
                attention_mask=torch.from_numpy(mask[:, :end].astype(int)),
                position_ids=positions[:, part],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = result.past_key_values, end
            found.append(result.logits[:, -1].numpy())
    return np.stack(found, axis=1)


def main():
    tokens, mask = inputs()
    vectors = {}
    for case in CASES:
        model = build(case)
        fields = json.loads(model.config.to_json_string())
        fields["architectures"] = [type(model).__name__]
        last = logits(model, tokens, mask)[:, -1]
        vectors[case] = {"fields": fields, "logits": np.round(last.astype(float), 5).tolist()}
    PATH.parent.mkdir(exist_ok=True)
    lines = (f"{json.dumps(case)}: {json.dumps(vector)}" for case, vector in vectors.items())
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
