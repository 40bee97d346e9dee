"""Iterations whose prompts and rewards are ordinary Python, and a loop of them."""

import functools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm import _validation, sharding
from proxlm._decoding.rows import texts
from proxlm.policy import protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import checks, judging, resampling
from proxlm.policy._iteration import prompts as prompts_lib
from proxlm.policy._iteration.halves import PPOState, make_collect_and_learn
from proxlm.policy._iteration.halves import init as init

__all__ = ["Iteration", "host_parts", "iterate"]


class Iteration(NamedTuple):
    """One turn of `iterate`.

    Attributes:
      index: of the iteration, from 0 at a new state.
      state: after it.
      metrics: of it.
      samples: what was learnt from.
      rewards: of it, as arrays.
    """

    index: int
    state: PPOState
    metrics: Any
    samples: Any
    rewards: Any

    def table(self, decode: Callable[[list[int]], str], num_rows: int = 4) -> list[dict[str, Any]]:
        """The first rows as text, with their rewards: for a print or a log every k iterations."""
        samples, rewards = jax.device_get((self.samples, self.rewards))
        width = samples.response_mask.shape[1]
        tokens, mask, said = (x[:num_rows] for x in (samples.tokens, samples.mask, samples.response_mask))
        prompts = texts(decode, tokens[:, :-width], mask[:, :-width])
        responses = texts(decode, tokens[:, -width:], said)
        reward = lambda i: jax.tree.map(lambda x: x[i].tolist(), rewards)
        return [
            {"prompt": prompts[i], "response": responses[i], "reward": reward(i)} for i in range(len(prompts))
        ]


@_validation.typed
def iterate(
    state: PPOState,
    key: jax.Array,
    num_iterations: int,
    actor: protocols.Actor,
    reward: protocols.Reward,
    prompts: protocols.PromptSource,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    *,
    auxiliary: protocols.Auxiliary | None = None,
    finish: Callable[[Any], Any] | None = None,
    overlap: bool = False,
    donate: bool = False,
) -> Iterator[Iteration]:
    """Iterations of `make_host_step`, one at a time: evaluation and early stop are the loop's body.

    Iteration i has the key `fold_in(key, i)`, with i from `state.iteration` on, so that a run that goes
    on from a kept state has the keys of one that was never stopped.

    Args:
      key: a typed key; consumed.
      overlap: sample the next batch while the reward of this one is computed. It is then by the policy
        of one update before, which `config.correction` corrects; order and keys stay. What `max_draws`
        draws again is by the policy of now.
      donate: give the memory of a state to the next one, so that only the newest can be read.

    Raises:
      ValueError: if an argument is invalid, or as `make_host_step`.

    >>> import optax
    >>> from proxlm import lm
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4)
    >>> config = PPOConfig(num_epochs=1, num_minibatches=1)
    >>> prompts = lambda key: lm.Prompts(np.zeros((2, 3), int))
    >>> state = init(actor.init(jax.random.key(0)), optax.sgd(0.1), config)
    >>> reward = lambda samples: [1.0, 0.0]
    >>> for turn in iterate(state, jax.random.key(1), 9, actor, reward, prompts, optax.sgd(0.1), config):
    ...     if turn.metrics.reward > 0.4:
    ...         break
    >>> turn.index, turn.table(str, 1)[0]["reward"]
    (0, 1.0)
    """
    _validation.to_int(0, "ppo.iterate", num_iterations=num_iterations)
    if overlap and config.correction is None:
        remedy = "The batch is of an older policy: give partial(importance_weights.truncated, high=2.0)."
        raise _validation.invalid("config.correction", None, "weights with overlap", remedy, "ppo.iterate")
    parts = host_parts(actor, reward, prompts, optimizer, config, auxiliary, finish, donate)
    return _iterate(state, key, num_iterations, parts, overlap)


def _iterate(state, key, num_iterations, parts, overlap):
    sample, judge, learn, redraw = parts
    first = int(state.iteration)
    end, pool = first + num_iterations, futures.ThreadPoolExecutor(1)
    batch = None
    try:
        for i in range(first, end):
            own = jax.random.fold_in(key, i)
            batch = sample(state, own) if batch is None else batch
            judged = pool.submit(judge, *batch)
            ahead = overlap and i + 1 < end
            batch = sample(state, jax.random.fold_in(key, i + 1)) if ahead else None
            samples, rewards = redraw(state, own, judged.result())
            state, metrics = learn(state, jax.random.split(own, 3)[2], samples, rewards)
            yield Iteration(i, state, metrics, samples, rewards)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def host_parts(
    actor: Any,
    reward: Any,
    prompts: Any,
    optimizer: Any,
    config: PPOConfig,
    auxiliary: Any,
    finish: Any,
    donate: bool = False,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Sampling, judging, learning and drawing again of an iteration in Python, all but judging jitted."""
    reward = checks.reward_function("ppo.make_host_step", reward, config)
    if finish is not None:
        _validation.a_function("ppo.make_host_step", finish=finish)
    collect, learn = make_collect_and_learn(actor, optimizer, config, auxiliary)
    collect = collect if checks.calls_python(actor) else jax.jit(collect)
    learn, draw = jax.jit(learn, donate_argnums=0 if donate else ()), prompts_lib.source(prompts)

    def sample(state, key):
        key_prompts, key_sample, _ = jax.random.split(key, 3)
        asked = draw(key_prompts)
        prompts_lib.check(asked)
        return collect(state, key_sample, prompts_lib.arrays_of(asked)), asked

    def judge(samples, asked):
        tokens, host = samples.tokens, sharding.own_rows(samples)
        about = _of_own_rows(jax.device_get(prompts_lib.for_reward(asked, config)), host, tokens)
        if finish is not None:
            host = finish(host)
            samples = sharding.of_rows(host, tokens)
        rewards = judging.as_arrays(reward(host, *about), host.response_mask, np)
        return samples, sharding.of_rows(rewards, tokens)

    varies = jax.jit(functools.partial(resampling.varies, config=config))
    better = jax.jit(functools.partial(resampling.better, config=config))

    def redraw(state, key, drawn):
        for i in range(1, config.max_draws):
            if bool(jnp.all(varies(*drawn))):
                break
            drawn = better(drawn, judge(*sample(state, resampling.again(key, i))))
        return drawn

    return sample, judge, learn, redraw


def _of_own_rows(about, host, tokens):
    """Words of prompts, those of the rows alone that this process holds."""
    if len(host.tokens) == len(tokens):
        return about
    rows = sharding.own_numbers(tokens)
    of_list = lambda x: [x[i] for i in rows] if isinstance(x, list) else x[rows]
    return jax.tree.map(of_list, about, is_leaf=lambda x: isinstance(x, list))
