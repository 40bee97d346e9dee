"""Policy optimisation from a pretrained policy, several seeds in one call, method after method."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import fitting, runs
from proxlm import lm
from proxlm.policy import ppo


def learn(
    key: jax.Array,
    params: Any,
    prompts: jax.Array,
    *,
    actor: lm.Actor,
    reward: Callable,
    tx: Any,
    settings: ppo.PPOConfig,
    iterations: int,
    batch: int,
    watch: Callable = lambda samples, rewards: {},
):
    """Iterations from params on prompts drawn from `[N, P]`: new params, metrics, what was watched.

    `watch(samples, rewards)` sees the responses of every iteration before the policy learns.
    """
    collect, improve = ppo.make_halves(actor, tx, settings)

    def iteration(state, key):
        key_prompts, key_sample, key_improve = jax.random.split(key, 3)
        asked = jax.random.choice(key_prompts, prompts, (batch // settings.group_size,))
        samples = collect(state, key_sample, lm.Prompts(asked))
        rewards = reward(samples)
        seen = watch(jax.tree.map(lambda x: x[:batch], samples), rewards[:batch])
        state, metrics = improve(state, key_improve, samples, rewards)
        return state, (metrics, seen)

    state = ppo.init({"policy": params}, tx, settings)
    state, (metrics, seen) = jax.lax.scan(iteration, state, jax.random.split(key, iterations))
    return state.params["policy"], metrics, seen


def each(fn: Callable, *rows: Any) -> Any:
    """fn(*row) for every row of the arrays, as vmap would.

    A map and not a vmap: with weights of its own for every seed, XLA's products on a CPU are four
    times slower.
    """
    return jax.lax.map(lambda row: fn(*row), rows)


def timed(fn: Callable, *args: Any) -> tuple[Any, float]:
    """The result of a function, compiled first, and the processor's seconds without compilation."""
    compiled = jax.jit(fn).lower(*args).compile()
    start = time.process_time()
    result = jax.block_until_ready(compiled(*args))
    return result, time.process_time() - start


def one_by_one(
    run: runs.Run,
    name: str,
    trial: Callable[[str], dict[str, jax.Array]],
    members: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    config: Any,
    shown: Sequence[str],
) -> dict[str, np.ndarray]:
    """trial(member) for every member, each result `[members, ...]` of the given shapes.

    Saved after each, so that a run that was killed goes on with the next; `shown` is logged.
    """

    def run_chunk(results, _):
        index = int(results["done"])
        found = trial(members[index])
        put = lambda every, one: every.at[index].set(one)
        done = {part: put(results[part], found[part]) for part in shapes}
        return done | {"done": jnp.int32(index + 1)}, [
            {part: jnp.mean(found[part]) for part in shown}
        ]

    nothing = {part: jnp.zeros((len(members), *shape)) for part, shape in shapes.items()}
    results = fitting.go_on(
        run, name, run_chunk, nothing | {"done": jnp.int32(0)}, len(members), 1,
        key=jax.random.key(0), folder=run.path / name, config=config, every=1,
    )  # fmt: skip
    return jax.device_get({part: results[part] for part in shapes})
