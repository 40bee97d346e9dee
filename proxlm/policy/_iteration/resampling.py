"""Groups drawn again until their rewards vary, at most so many times (DAPO's dynamic sampling)."""

from typing import Any

import jax
import jax.numpy as jnp

from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import judging

__all__ = ["again", "better", "until_varied", "varies"]


def varies(samples: Any, rewards: Any, config: PPOConfig) -> jax.Array:
    """Whether the valid rewards of each group differ, bool `[B/G]`."""
    total = judging.judge(rewards, samples.response_mask, config).total
    return judging.groups_vary(total, config.group_size)


def better(old: tuple[Any, Any], new: tuple[Any, Any], config: PPOConfig) -> tuple[Any, Any]:
    """As many groups of two draws, samples and rewards each, as one has: those that vary come first."""
    flat = jnp.concatenate([varies(*draw, config) for draw in (old, new)])
    count = flat.size // 2
    chosen = jnp.argsort(~flat, stable=True)[:count]
    rows = (chosen[:, None] * config.group_size + jnp.arange(config.group_size)[None]).reshape(-1)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[rows], old, new)


def again(key: jax.Array, i: Any) -> jax.Array:
    """The key of draw i ≥ 1 of an iteration with this key, of which the first draw takes the three parts."""
    return jax.random.fold_in(key, 2 + i)


def until_varied(draw: Any, key: jax.Array, first: tuple[Any, Any], config: PPOConfig) -> tuple[Any, Any]:
    """Draws of `draw(key) -> (samples, rewards)` after the first one, merged, inside jit."""
    goes_on = lambda carry: (carry[0] < config.max_draws) & ~jnp.all(varies(carry[1][0], carry[1][1], config))
    more = lambda carry: (carry[0] + 1, better(carry[1], draw(again(key, carry[0])), config))
    return jax.lax.while_loop(goes_on, more, (jnp.int32(1), first))[1]
