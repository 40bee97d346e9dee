"""The shape of a transformer."""

import contextlib
import dataclasses
import functools

import jax

SIZES = (
    "vocab_size",
    "num_layers",
    "width",
    "num_heads",
    "num_kv_heads",
    "head_width",
    "hidden_width",
    "max_length",
)
PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer.  Static: hashable, and an argument of every function here.

    The sizes given as None are filled in at once, so a `dataclasses.replace` that changes the
    width keeps them: set head_width and hidden_width to None there as well.  With more than 8
    layers the loop over them is not unrolled; set remat too, or its backward pass is slow.

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
    num_kv_heads: int | None = None  # None: one for every query head
    head_width: int | None = None  # None: width / num_heads
    hidden_width: int | None = None  # None: 8/3 · width, rounded up to a multiple of 8
    max_length: int = 256
    rope_theta: float = 1e4
    norm_epsilon: float = 1e-5
    qk_norm: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    lm_head: bool = True  # False: a critic or a reward model has no use for it
    value_head: bool = False
    init_scale: float = 0.02
    compute_dtype: str = "float32"
    matmul_precision: str | None = "highest"  # None: as jax.default_matmul_precision says
    remat: bool = False
    unroll: int | None = None  # layers a step of the layer loop; None: all of up to 8, else 1

    def __post_init__(self):
        """Fills in the derived sizes and checks that they fit together."""
        for name in SIZES:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: expected at least 1")
        fill = functools.partial(object.__setattr__, self)
        if self.num_kv_heads is None:
            fill("num_kv_heads", self.num_heads)
        if self.head_width is None:
            if self.width % self.num_heads:
                raise ValueError(
                    f"width={self.width} is not divisible by num_heads={self.num_heads}: "
                    "give head_width, or a width that is a multiple of num_heads"
                )
            fill("head_width", self.width // self.num_heads)
        if self.hidden_width is None:
            fill("hidden_width", -(-8 * self.width // 24) * 8)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads="
                f"{self.num_kv_heads}: every key-value head serves the same number of queries"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} is odd: RoPE rotates pairs")
        if self.matmul_precision not in (None, *PRECISIONS):
            raise ValueError(
                f"matmul_precision={self.matmul_precision!r}: expected None or one of {', '.join(PRECISIONS)}"
            )
        if not (self.lm_head or self.value_head):
            raise ValueError("lm_head and value_head are both False: the model has no output")


def products(config):
    """A context: what is traced in it multiplies matrices at the config's precision.

    >>> with products(ModelConfig(vocab_size=16)):
    ...     jax.config.jax_default_matmul_precision
    'highest'
    """
    if config.matmul_precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(config.matmul_precision)


def check_length(length, config):
    """Raises ValueError when a row of `length` tokens does not fit the context.

    >>> check_length(256, ModelConfig(vocab_size=16, max_length=256))
    """
    if length > config.max_length:
        raise ValueError(
            f"{length} tokens do not fit the context of max_length={config.max_length}: "
            "cut the prompt, sample fewer tokens, or use a config with a longer context"
        )
