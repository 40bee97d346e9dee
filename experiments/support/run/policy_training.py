"""Policy optimisation from a pretrained policy, several seeds in one call, method after method."""

import time
from collections.abc import Callable
from typing import Any

import jax

from proxlm import lm
from proxlm.policy import ppo


def learn(
    key: jax.Array,
    params: Any,
    prompts: jax.Array,
    *,
    actor: lm.Actor,
    reward: Callable,
    optimizer: Any,
    settings: ppo.PPOConfig,
    iterations: int,
    batch: int,
    watch: Callable = lambda samples, rewards: {},
):
    """Iterations from params on prompts drawn from `[N, P]`: new params, metrics, what was watched.

    `watch(samples, rewards)` sees the responses of every iteration before the policy learns.
    """
    collect, improve = ppo.make_collect_and_learn(actor, optimizer, settings)

    def iteration(state, key):
        key_prompts, key_sample, key_improve = jax.random.split(key, 3)
        asked = jax.random.choice(key_prompts, prompts, (batch // settings.group_size,))
        samples = collect(state, key_sample, lm.Prompts(asked))
        rewards = reward(samples)
        seen = watch(jax.tree.map(lambda x: x[:batch], samples), rewards[:batch])
        state, metrics = improve(state, key_improve, samples, rewards)
        return state, (metrics, seen)

    state = ppo.init({"policy": params}, optimizer, settings)
    state, (metrics, seen) = jax.lax.scan(iteration, state, jax.random.split(key, iterations))
    trained: Any = state.params
    return trained["policy"], metrics, seen


def each(fn: Callable, *rows: Any) -> Any:
    """fn(*row) for every row of the arrays, as vmap would.

    A map and not a vmap: with weights of its own for every seed, XLA's products on a CPU are four
    times slower. Over the `seeds` axis of a mesh each device has rows of its own, and sends nothing.
    """
    one_by_one = lambda *rows: jax.lax.map(lambda row: fn(*row), rows)
    count = jax.sharding.get_abstract_mesh().shape.get("seeds", 1)
    if count == 1 or jax.tree.leaves(rows)[0].shape[0] % count:
        return one_by_one(*rows)
    place = jax.P("seeds")
    divided = jax.shard_map(
        one_by_one, in_specs=place, out_specs=place, axis_names={"seeds"}, check_vma=False
    )
    return divided(*rows)


def timed(fn: Callable, *args: Any) -> tuple[Any, float]:
    """The result of a function, compiled first, and the processor's seconds without compilation."""
    compiled = jax.jit(fn).lower(*args).compile()
    start = time.process_time()
    result = jax.block_until_ready(compiled(*args))
    return result, time.process_time() - start
