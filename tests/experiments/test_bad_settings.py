"""Bad settings are refused when a configuration is made, with the field, its value and what is expected."""

import dataclasses
import importlib
import math
import re

import pytest

from experiments import __main__ as every

# Experiment ↦ settings and what is said of them, beyond what every field refuses.
BAD = {
    "exact": [
        ({"algorithms": ("gppo",)}, "algorithms must be one of 'reinforce', .*, got 'gppo'"),
        ({"group_size": 1}, "group_size must be a number ≥ 2, got 1"),
        ({"group_size": 50}, "group_size must be smaller, got 50. There are .* groups"),
        ({"vocab_size": 9, "length": 9}, "65536"),
        ({"vocab_size": 1}, "vocab_size must be a number ≥ 2"),
        ({"kl_coef": 0.0}, "kl_coef must be a number > 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0"),
    ],
    "finetune": [
        ({"train": "lora"}, "train must be words such as \"all\", .*, got 'lora'"),
        ({"held_out": 1.0}, "held_out must be a share"),
        ({"beta": 0.0}, "beta must be a number > 0"),
        ({"pack": True, "dpo": True}, "pack must be False with dpo"),
        ({"steps": 15}, "steps must be 1 to 10, or a multiple of 10, got 15"),
    ],
    "generate": [
        ({"prompt": ""}, "prompt must be the beginning of a text"),
        ({"top_p": 1.5}, r"top_p\b.*1\.5"),
        ({"top_k": 0}, r"top_k\b.*0"),
    ],
    "gradient_flow": [({"checks": 33}, "checks must be a divisor of steps=500, got 33")],
    "identification": [
        ({"only": ("magic",)}, "only must be one of 'prox-SGD', .*, got 'magic'"),
        ({"live": 200}, r"live must be a number in \[1, 100\], got 200. The upper bound is weights"),
        ({"window": 100, "steps": 50}, r"window must be a number in \[1, 50\]"),
        ({"strength": 0.0}, "strength must be a share"),
        ({"strength": 2.0}, "strength must be a share"),
        ({"rows": 1}, "rows must be a number ≥ 2"),
    ],
    "initialisation": [
        ({"depths": (2, 0)}, "depths must be a number ≥ 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0"),
    ],
    "inspect_lm": [
        ({"choosing": 1.0}, "choosing must be a share"),
        ({"reach": 0.0}, "reach must be a number > 0"),
        ({"context": 8}, "context must be a number ≥ 16"),
        ({"num_heads": 3}, "num_heads"),
    ],
    "lasso_path": [
        ({"reviews": 5}, "reviews must be a number ≥ 10"),
        ({"smallest": 2.0}, "smallest must be a share"),
        ({"tolerance": 0.0}, "tolerance must be a share"),
    ],
    "linear_mse": [
        ({"batch": 200}, r"batch must be a number in \[1, 100\], got 200. The upper bound is rows"),
        ({"rows": 2, "batch": 1}, "rows must be a number ≥ 3"),
        ({"tolerance": 0.0}, "tolerance must be a number > 0"),
    ],
    "low_rank_anchor": [
        ({"steps": 302}, "steps must be a multiple of every=10, got 302"),
        ({"nuclear": (1.0, 2.0)}, "nuclear must be 0 and then strengths above it"),
    ],
    "mirror_lm": [
        ({"rollouts": 12}, "rollouts must be a positive multiple of 8, got 12"),
        ({"pool": 3000}, "pool must be a multiple of 1024"),
        ({"kl_coef": 0.0}, "kl_coef must be a number > 0"),
        ({"methods": ("grpo",)}, "methods must be one of 'clip', .*, got 'grpo'"),
    ],
    "overoptimisation": [
        ({"iterations": 6}, "iterations must be a positive multiple of 4, got 6"),
        ({"pairs": (8, 8)}, "pairs must be two rising numbers"),
        ({"pairs": (8, 600)}, "pairs must be a multiple of 512"),
        ({"context": 1}, "context must be a number ≥ 2"),
        ({"kl_coefs": (0.1,)}, "kl_coefs must be 0 and then numbers above it"),
    ],
    "prune_lm": [
        ({"methods": ("luck",)}, "methods must be one of .*, got 'luck'"),
        ({"neurons": (1.5, 0.1)}, r"neurons must be a number in \[0, 1\]"),
        ({"heads": (1,)}, r"heads must be one for each of 2 shares, got \(1,\)"),
    ],
    "question_answering": [
        ({"group": 1}, "group must be a number ≥ 2"),
        ({"exercises": 3}, "exercises must be a number ≥ 64, got 3. The lower bound is batch"),
        ({"sums_steps": 15}, "sums_steps must be a positive multiple of 50"),
        ({"recipe": "luck"}, "recipe must be one of .*, got 'luck'"),
    ],
    "randomwalks": [
        ({"probability": 0.0}, "probability must be a number > 0"),
        ({"probability": 1.5}, r"probability must be a number in \[0, 1\]"),
        ({"nodes": 2}, "nodes must be a number ≥ 3"),
        ({"sft_batch": 2000}, r"sft_batch must be a number in \[1, 1000\]"),
        ({"methods": ("gppo",)}, "methods must be one of .*, got 'gppo'"),
        ({"width": 33}, "width"),
    ],
    "sentiment": [
        ({"batch": 6}, "batch"),
        ({"lm_steps": 30}, "lm_steps must be a positive multiple of 20"),
        ({"iterations": 3}, "iterations must be a positive multiple of 2"),
        ({"width": 48}, "width must be a positive multiple of 32"),
        ({"rm_layers": 5}, r"rm_layers must be a number in \[1, 4\]"),
        ({"prompt": 96}, r"prompt \+ response must be less than two windows, 128 tokens, got 128"),
        ({"documents": 63}, "documents must be 0, which is all, or at least 64"),
        ({"vocab_size": 256}, "vocab_size must be a number ≥ 257"),
    ],
    "sigmoid_classifier": [({"certainty": 0.0}, "certainty must be a number > 0")],
    "sparse_lm": [
        ({"choosing": 1.0}, "choosing must be a share"),
        ({"shares": (0.1, 2.0, 0.0, 0.0)}, r"shares must be a number in \[0, 1\]"),
        ({"strengths": (1.0,)}, r"strengths, reaches and shares must be of one length, got \(1, 4, 4\)"),
    ],
    "text_classification": [
        ({"corpora": ("tweets",)}, "corpora must be one of 'newsgroups', .*, got 'tweets'"),
        ({"phrase_rate": 0.0}, "phrase_rate must be a number > 0"),
        ({"tuned_layers": 5, "tuned_depth": 4}, "tuned_layers must be at most tuned_depth=4, .*, got 5"),
        ({"validation": 1.0}, "validation must be a share"),
    ],
    "train_lm": [
        ({"prompt": ""}, "prompt must be 1 to 64 characters, the context, got ''"),
        ({"prompt": 65 * "a"}, "prompt must be 1 to 64 characters"),
        ({"steps": 150}, "steps must be 1 to 100, or a multiple of 100, got 150"),
        ({"context": 1}, "context must be a number ≥ 2"),
        ({"num_heads": 3}, "num_heads"),
    ],
    "translation": [
        ({"pair": "kjv-latin"}, "pair must be one of 'kjv-web', 'kjv-spanish', got 'kjv-latin'"),
        ({"spanish": "somewhere"}, "spanish must be empty for pair='kjv-web', got 'somewhere'"),
        ({"steps": 30}, "steps must be a positive multiple of 20"),
        ({"candidates": 1}, "candidates must be a number ≥ 2"),
        ({"sources": 6}, "sources must be a positive multiple of 4"),
        ({"temperature": 0.0}, "temperature must be .*, got 0.0"),
        ({"length_penalties": ()}, "length_penalties must be at least one number"),
        ({"aggregation": "words"}, "aggregation must be one of"),
    ],
    "verifiable": [
        ({"sft_steps": 30}, "sft_steps must be a positive multiple of 50"),
        ({"slips": 1.5}, r"slips must be a number in \[0, 1\]"),
        ({"recipes": ("gppo",)}, "recipes must be one of .*, got 'gppo'"),
        ({"batch": 12}, "batch"),
    ],
    "sparse_rl": [
        ({"lanes": ("l1@1e-3",)}, "lanes must be KIND@RATE or .*, got 'l1@1e-3'"),
        ({"prompts": 0}, "prompts must be a number ≥ 1, got 0"),
    ],
    "reinforce": [
        ({"train": "some"}, "train must be words such as \"all\", .*, got 'some'"),
        ({"prompt": "shots"}, 'prompt must be "chat", or "shots:4" .*, got \'shots\''),
        ({"recipe": "gppo"}, "recipe must be one of .*, got 'gppo'"),
        ({"group": 1}, "group must be a number ≥ 2, got 1"),
        ({"temperature": 0.0}, "temperature must be a number > 0"),
    ],
}


def test_each_experiment_has_its_bad_settings():
    assert set(BAD) == set(every.EXPERIMENTS)


@pytest.mark.parametrize("name", every.EXPERIMENTS)
def test_what_an_experiment_refuses(name):
    config = importlib.import_module(f"experiments.{name}").Config
    for settings, message in BAD[name]:
        with pytest.raises(ValueError, match=message):
            config(**settings)


@pytest.mark.parametrize("name", every.EXPERIMENTS)
def test_every_number_is_finite_and_not_negative_and_no_list_is_empty(name):
    config = importlib.import_module(f"experiments.{name}").Config
    for field in dataclasses.fields(config):
        bad = [()] if isinstance(field.default, tuple) and field.default else []
        if type(field.default) in (int, float):
            bad += [-1, math.nan, math.inf]
        bad += [0] if type(field.default) is int and field.default else []
        for value in bad:
            with pytest.raises(ValueError, match=rf"{field.name} must be .*, got {re.escape(repr(value))}"):
                config(**{field.name: value})
