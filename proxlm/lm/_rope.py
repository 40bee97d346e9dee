"""Rotary positions (Su et al. 2021): frequencies, their scaling to longer contexts, the rotation."""

import math

import jax
import jax.numpy as jnp

from proxlm.lm._config import LayerKind, ModelConfig, rotary_width
from proxlm.lm._rope_scaling import RopeScaling


def rotation(positions: jax.Array, config: ModelConfig, kind: LayerKind) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles p·f_i of positions p `[...]`, i = 0 … r/2 − 1.

    float32 `[..., r/2]` each. Where scaling is by length, the largest position gives it.

    >>> config = ModelConfig(vocab_size=16, width=16, num_heads=2)
    >>> [part.shape for part in rotation(jnp.arange(5), config, LayerKind(None, "all"))]
    [(5, 4), (5, 4)]
    """
    width = rotary_width(config)
    theta, scaling = config.rope_theta, config.rope_scaling
    if kind.rope == "window" and config.window_rope_theta is not None:
        theta, scaling = config.window_rope_theta, None
    if scaling is not None and scaling.kind == "dynamic":
        theta = _dynamic_theta(theta, width, scaling, jnp.max(positions) + 1)
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling is not None:
        frequency = _scaled(frequency, config.rope_theta, width, scaling, positions)
    angle = positions[..., None].astype(jnp.float32) * jnp.expand_dims(
        frequency, tuple(range(positions.ndim))
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if scaling is not None and scaling.attention_factor != 1.0:
        return cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos, sin


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + r/2}) of the first r entries of the last axis; cos and sin broadcast.

    >>> rotate(jnp.array([1.0, 0.0]), jnp.array([0.0]), jnp.array([1.0])).tolist()
    [0.0, 1.0]
    """
    half = cos.shape[-1]
    low, high, rest = jnp.split(x, [half, 2 * half], axis=-1)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    turned = [low * cos - high * sin, high * cos + low * sin]
    return jnp.concatenate(turned if rest.shape[-1] == 0 else [*turned, rest], axis=-1)


def _dynamic_theta(theta: float, width: int, scaling: RopeScaling, length: jax.Array) -> jax.Array:
    longest = jnp.maximum(length, scaling.original_length).astype(jnp.float32)
    stretch = scaling.factor * longest / scaling.original_length - (scaling.factor - 1)
    return theta * stretch ** (width / (width - 2))


def _scaled(frequency, theta, width, scaling, positions):
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_length * frequency / (2 * math.pi)
        share = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        return frequency * (share + (1 - share) / scaling.factor)
    if scaling.kind == "yarn":
        share = _yarn_share(theta, width, scaling)
        return frequency * (share + (1 - share) / scaling.factor)
    if scaling.kind == "longrope":
        longer = jnp.max(positions) + 1 > scaling.original_length
        return frequency / jnp.where(longer, jnp.array(scaling.long), jnp.array(scaling.short))
    return frequency  # dynamic: in theta


def _yarn_share(theta, width, scaling):
    """The share of each frequency that stays: a ramp over the entries, from 1 down to 0."""
    entry = lambda turns: (
        width * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
    )
    first, last = entry(scaling.high), entry(scaling.low)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last
    places = jnp.arange(width // 2, dtype=jnp.float32)
    return 1.0 - jnp.clip((places - first) / (last - first), 0.0, 1.0)
