"""The shape of a transformer: sizes, and the switches in which architectures differ."""

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from proxlm import _validation
from proxlm.lm._rope_scaling import RopeScaling

Params = Mapping[str, Any]
"""Parameters of a model: a nested dict of arrays, as `init` makes it."""

SIZES = ("vocab_size", "num_layers", "width", "num_heads", "max_length")
DERIVED_SIZES = ("num_kv_heads", "head_width", "hidden_width")
FLAGS = ("qkv_bias", "out_bias", "mlp_bias", "gated", "parallel", "tie_embeddings", "lm_head", "value_head")
CHOICES = {
    "positions": ("rope", "learned"),
    "norm": ("rms", "rms_plus_one", "layer"),
    "norm_place": ("before", "after", "both"),
    "qk_norm": (None, "head", "whole"),
    "activation": ("silu", "gelu", "gelu_tanh"),
    "matmul_precision": (None, "default", "high", "highest", "bfloat16", "tensorfloat32", "float32"),
    "attention": ("einsum", "cudnn"),
    "compute_dtype": ("float32", "bfloat16", "float16", "float64"),
}

# Policies of jax.checkpoint_policies: what the backward pass finds and does not compute anew. The last
# keeps the results of the kernels, and not attention's [B, H, T, T].
REMAT = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")

# Declared as int, so that a config's sizes are integers to a type checker; filled in at once.
_DERIVED = typing.cast(int, None)


class LayerKind(NamedTuple):
    """The switches in which one layer may differ from the next."""

    window: int | None  # how many positions a query sees, its own included; None: all
    rope: str | None  # "all": as the config says; "window": by window_rope_theta; None: none


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. Static: hashable, and an argument of every function here.

    The switches are orthogonal; their defaults make a Llama. Sizes given as None are filled in at
    once, so a `dataclasses.replace` that changes the width keeps them: set head_width and
    hidden_width to None there as well. With more than 8 layers the loop over them is not unrolled;
    set remat too, or its backward pass is slow.

    A float32 model multiplies in float32 on every device. JAX's own default rounds the factors of
    a product to fewer bits on GPUs and TPUs, and then log-probabilities of tokens as they are
    sampled and as they are scored differ (by up to 0.1 nats with 4 layers on an H100), and with
    them the ratios of PPO. Where speed counts for more, take compute_dtype="bfloat16", or a lower
    matmul_precision.

    >>> smollm2_135m = ModelConfig(49152, num_layers=30, width=576, num_heads=9, num_kv_heads=3,
    ...                            hidden_width=1536, max_length=8192, rope_theta=1e5)
    >>> smollm2_135m.head_width
    64
    """

    vocab_size: int
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = _DERIVED  # None: one for every query head
    head_width: int = _DERIVED  # None: width / num_heads
    hidden_width: int = _DERIVED  # None: 8/3 · width, rounded up to a multiple of 8
    max_length: int = 256

    positions: str = "rope"  # or "learned": a table of max_length rows, added to the embedding
    rope_theta: float = 1e4
    rope_share: float = 1.0  # the share of a head's entries that rotate, the first ones
    rope_scaling: RopeScaling | None = None
    rope_layers: tuple[bool, ...] | None = None  # which layers rotate; None: all
    window: int | None = None  # positions that a query sees, its own included; None: all before it
    window_layers: tuple[bool, ...] | None = None  # which layers have the window; None: all
    window_rope_theta: float | None = None  # of layers with a window, unscaled; None: as the others

    norm: str = "rms"  # or "rms_plus_one": times 1 + scale; or "layer": with mean and bias
    norm_place: str = "before"  # before attention and MLP; or "after" them, or "both"
    norm_epsilon: float = 1e-5
    qk_norm: str | None = None  # RMS norm of queries and keys: each "head", or the "whole" of them
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"  # or "gelu", or "gelu_tanh", its usual approximation
    gated: bool = True  # act(x·G) ⊙ x·U in place of act(x·U)
    parallel: bool = False  # attention and MLP read the same stream
    embedding_scale: float | None = None  # multiplies the embeddings
    query_scale: float | None = None  # multiplies q·k; None: head_width^(−1/2)
    attention_cap: float | None = None  # c of c·tanh(s/c) on attention scores
    logit_cap: float | None = None  # the same on logits

    tie_embeddings: bool = True
    lm_head: bool = True  # False: a critic or a reward model has no use for it
    value_head: bool = False
    init_scale: float = 0.02
    compute_dtype: str = "float32"
    attention: str = "einsum"  # or "cudnn" on GPUs, whose kernel keeps no scores, wherever nothing is cached
    matmul_precision: str | None = "highest"  # None: as jax.default_matmul_precision says
    remat: bool | str = False  # recompute layers in the backward pass; or what to keep, one of REMAT
    unroll: int | None = None  # layers in one step of the layer loop; None: all of up to 8, else 1

    def __post_init__(self):
        """Checks every field, fills in the derived sizes, and checks that they fit together."""
        fill = functools.partial(object.__setattr__, self)
        for name in SIZES:
            if getattr(self, name) is None:
                raise _validation.invalid(name, None, "an integer ≥ 1", function="ModelConfig")
        for name in ("rope_layers", "window_layers"):  # lists come from JSON
            if isinstance(getattr(self, name), list):
                fill(name, tuple(getattr(self, name)))
        if isinstance(self.rope_scaling, Mapping):
            fill("rope_scaling", RopeScaling(**self.rope_scaling))
        _check_numbers(self)
        if self.num_kv_heads is None:
            fill("num_kv_heads", self.num_heads)
        if self.head_width is None:
            if self.width % self.num_heads:
                expected = f"a multiple of num_heads={self.num_heads}"
                raise _validation.invalid("width", self.width, expected, "Or give head_width.", "ModelConfig")
            fill("head_width", self.width // self.num_heads)
        if self.hidden_width is None:
            fill("hidden_width", -(-8 * self.width // 24) * 8)
        _check_fit(self)


def _check_numbers(config):
    check = functools.partial(dict, function="ModelConfig")
    fields = vars(config)
    pick = lambda *names: {name: fields[name] for name in names}
    _validation.integer(1, **check(**pick(*SIZES, *DERIVED_SIZES, "window", "unroll")))
    scales = pick(
        *("rope_theta", "rope_share", "window_rope_theta", "embedding_scale", "query_scale"),
        *("attention_cap", "logit_cap"),
    )
    _validation.positive(**check(**scales))
    _validation.finite(**check(**scales))
    _validation.within(0, 1, **check(**pick("rope_share", "norm_epsilon")))
    _validation.at_least(0, **check(**pick("init_scale")))
    for name, choices in CHOICES.items():
        _validation.one_of(choices, **check(**pick(name)))
    _validation.one_of((False, True, *REMAT), **check(**pick("remat")))
    _validation.one_of((False, True), **check(**pick(*FLAGS)))
    for name in ("rope_layers", "window_layers"):
        flags = fields[name]
        if flags is not None and (len(flags) != config.num_layers or set(flags) - {False, True}):
            expected = f"{config.num_layers} booleans, one a layer, or None"
            raise _validation.invalid(name, flags, expected, function="ModelConfig")


def _check_fit(config):
    """Checks fields against one another; a setting without effect is an error."""
    invalid = functools.partial(_validation.invalid, function="ModelConfig")
    if config.num_heads % config.num_kv_heads:
        remedy = "Every key-value head serves the same number of query heads."
        raise invalid(
            "num_heads", config.num_heads, f"a multiple of num_kv_heads={config.num_kv_heads}", remedy
        )
    if rotary_width(config) % 2 or not rotary_width(config):
        name = "head_width" if config.rope_share == 1 else "head_width · rope_share"
        raise invalid(name, rotary_width(config), "even and positive", "RoPE rotates pairs.")
    scaling = config.rope_scaling
    if scaling is not None and scaling.short and len(scaling.short) != rotary_width(config) // 2:
        expected = f"{rotary_width(config) // 2} numbers, one for each pair that rotates"
        raise invalid("rope_scaling.short", scaling.short, expected, "Give as many.")
    if not (config.lm_head or config.value_head):
        raise invalid("lm_head", False, "True where value_head is False", "A model needs an output.")
    if config.window is None:
        for name in ("window_layers", "window_rope_theta"):
            if getattr(config, name) is not None:
                raise invalid(name, getattr(config, name), "None without a window", "Set window.")
    if config.positions == "learned":
        for name in ("rope_theta", "rope_scaling", "rope_layers", "rope_share"):
            default = ModelConfig.__dataclass_fields__[name].default
            if getattr(config, name) != default:
                remedy = 'Learned positions do not rotate: use positions="rope".'
                raise invalid(name, getattr(config, name), f"{default} with learned positions", remedy)
    half = config.compute_dtype in ("bfloat16", "float16")
    if config.attention == "cudnn" and (not half or config.attention_cap or config.head_width % 8):
        expected = "'einsum' but for 16-bit floats, heads of a multiple of 8 and no attention_cap"
        raise invalid("attention", config.attention, expected)
    if config.parallel and config.norm_place != "before":
        raise invalid("norm_place", config.norm_place, "'before' in a parallel model")


def rotary_width(config: ModelConfig) -> int:
    """The number of entries of a head that rotate.

    >>> rotary_width(ModelConfig(vocab_size=16, width=64, num_heads=4, rope_share=0.25))
    4
    """
    return int(config.head_width * config.rope_share)


@functools.lru_cache
def layer_kinds(config: ModelConfig) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """The distinct kinds of layers, and the index of each layer's kind among them.

    >>> config = ModelConfig(vocab_size=16, num_layers=3, window=4, window_layers=(True, False, True))
    >>> layer_kinds(config)[0], layer_kinds(config)[1]
    ((LayerKind(window=4, rope='all'), LayerKind(window=None, rope='all')), (0, 1, 0))
    """
    everywhere = (True,) * config.num_layers
    windowed = config.window_layers or everywhere if config.window else (False,) * config.num_layers
    rotated = config.rope_layers or everywhere

    def kind(has_window, rotates):
        rope = "window" if has_window and config.window_rope_theta else "all"
        rope = rope if rotates and config.positions == "rope" else None
        return LayerKind(config.window if has_window else None, rope)

    kinds = [kind(*flags) for flags in zip(windowed, rotated, strict=True)]
    distinct = tuple(dict.fromkeys(kinds))
    return distinct, tuple(distinct.index(kind) for kind in kinds)


def layers_in_a_step(config: ModelConfig) -> int:
    """The number of layers in one step of the loop over them: all of up to 8, unless the config says.

    >>> layers_in_a_step(ModelConfig(vocab_size=16)), layers_in_a_step(ModelConfig(16, num_layers=30))
    (4, 1)
    """
    return config.unroll or (config.num_layers if config.num_layers <= 8 else 1)


def products(config: ModelConfig) -> contextlib.AbstractContextManager:
    """A context: what is traced in it multiplies matrices at the config's precision.

    >>> with products(ModelConfig(vocab_size=16)):
    ...     jax.config.jax_default_matmul_precision
    'highest'
    """
    if config.matmul_precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(config.matmul_precision)
