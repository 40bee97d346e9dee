"""Rewards as people have them: slow and concurrent ones on the host, and those of steps and turns.

A reward is a function of samples, or `{name: function}` of several; see `ppo.make_step`. It gives one number
per response or per token. NaN, and None on the host, is not judged. For those who come from TRL or verl:

- `reward_funcs` of texts and columns: `ppo.make_host_step(actor, {"right": of_texts(fn, decode)}, ...)`, with
  `reward_weights={"right": 1.0}` in the configuration; columns are fields of the prompts
- slow or async ones: `concurrent(fn, workers, timeout=..., retries=...)`; the next batch is sampled meanwhile
  by `ppo.iterate(..., overlap=True)`, whose loop's body holds callbacks, evaluation and early stop
- tools, multi-turn: `lm.Turns(tool, ...)` for `lm.make_actor` or `policy.actor_from_logits`, on the host by
  `lm.text_tool`; rewards of turns: `of_steps(rewards, turn_ends(samples.response_mask))`
- samples of vLLM or another engine: `actors.samples_of_rows`, for `learn` of `ppo.make_collect_and_learn`
- stop strings: `finish=functools.partial(policy.actors.stop_at, decode=..., stop_strings=...)`
- whole scripts: `experiments/how_to/grpo_folder.py`, `experiments/how_to/calculator.py`
"""

import asyncio
import inspect
import math
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm._decoding.rows import texts

__all__ = ["concurrent", "of_steps", "of_texts", "turn_ends"]


@_validation.typed
def concurrent(
    fn: Callable[..., Any], workers: int = 8, *, timeout: float | None = None, retries: int = 0
) -> Callable[..., list[Any]]:
    """A host reward that judges single responses at the same time, in threads or as coroutines.

    The scores stand in the order of the responses, whichever is ready first. A response whose every
    attempt fails or takes too long is not judged (None); where all of a batch fail, the first failure is
    raised. A thread that takes too long is not waited for, but goes on; a coroutine is cancelled.

    Args:
      fn: `(sample)` -> a score or None, or `async`; with prompts that have further fields
        `(sample, prompt)`. Both are rows: the samples' and prompts' types without the batch axis.
      workers: how many are judged at the same time, at most.
      timeout: seconds of one attempt, or None.
      retries: attempts after the first one that failed.

    Returns:
      A reward for `ppo.make_host_step`.

    Raises:
      ValueError: if an argument is invalid.

    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> class Row(NamedTuple):
    ...     tokens: np.ndarray
    >>> reward = concurrent(lambda row: float(row.tokens.sum()), workers=2)
    >>> reward(Row(np.array([[1, 2], [3, 4]])))
    [3.0, 7.0]
    """
    _validation.to_int(1, "rewards.concurrent", workers=workers)
    _validation.to_int(0, "rewards.concurrent", retries=retries)
    _validation.positive("rewards.concurrent", timeout=timeout)
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
    judge_all = _by_coroutines if is_async else _by_threads

    def reward(*batch: Any) -> list[Any]:
        rows = [tuple(_row(part, i) for part in batch) for i in range(_length(batch[0]))]
        scores, failures = judge_all(fn, rows, workers, timeout, retries)
        if rows and len(failures) == len(rows):
            raise failures[0]
        return scores

    return reward


def of_texts(fn: Callable[..., Any], decode: Callable[[list[int]], str]) -> Callable[..., Any]:
    """A host reward by a function of texts, as those of TRL: `fn(prompts, completions, **columns)`.

    Args:
      fn: given lists by name: prompts and completions as texts, and the prompts' fields beside tokens
        and mask, such as right answers; those that it has an argument for, or all where it takes any.
        It returns a list of scores, or None where a response is not judged.
      decode: token ids -> text.

    Returns:
      A reward for `ppo.make_host_step`, alone or as one of several by name.

    Raises:
      ValueError: if an argument is invalid.

    >>> from proxlm import lm
    >>> import numpy as np
    >>> mask = np.ones((1, 3), bool)
    >>> samples = lm.Samples(np.array([[97, 98, 99]]), mask, np.zeros((1, 2)), mask[:, 1:], mask[:, 0])
    >>> reward = of_texts(lambda completions: [len(text) for text in completions], lambda ids: "x" * len(ids))
    >>> reward(samples)
    [2]
    """
    _validation.a_function("rewards.of_texts", fn=fn)
    _validation.a_function("rewards.of_texts", decode=decode)
    parameters = inspect.signature(fn).parameters
    takes_any = any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters.values())

    def reward(samples: Any, prompts: Any = None) -> Any:
        width = samples.response_mask.shape[1]
        fields = getattr(prompts, "_fields", None) or getattr(prompts, "__dataclass_fields__", ())
        data = {name: getattr(prompts, name) for name in fields if name not in ("tokens", "mask")}
        data["prompts"] = texts(decode, samples.tokens[:, :-width], samples.mask[:, :-width])
        data["completions"] = texts(decode, samples.tokens[:, -width:], samples.response_mask)
        return fn(**{name: x for name, x in data.items() if takes_any or name in parameters})

    return reward


@_validation.typed
def of_steps(step_rewards: jax.Array, ends: jax.Array) -> jax.Array:
    """Rewards per token [B, R] of those of steps or turns [B, K]: the k-th stands at the k-th end.

    Args:
      step_rewards: NaN where a step is not judged; what has no end is dropped.
      ends: bool [B, R], the last token of each step.

    Raises:
      ValueError: if a shape is wrong.

    >>> of_steps(jnp.array([[0.5, 1.0]]), jnp.array([[False, True, False, True]])).tolist()
    [[0.0, 0.5, 0.0, 1.0]]
    """
    _check_rows("of_steps", ends=ends)
    if jnp.ndim(step_rewards) != 2 or jnp.shape(step_rewards)[0] != jnp.shape(ends)[0]:
        expected = f"[B, K] with B = {jnp.shape(ends)[0]}, the rows of ends"
        raise _validation.invalid("step_rewards.shape", jnp.shape(step_rewards), expected, "", "of_steps")
    (step_rewards,), ends = _validation.floats(step_rewards), jnp.asarray(ends)
    count = step_rewards.shape[1]
    step = jnp.cumsum(ends, axis=1) - 1
    picked = jnp.take_along_axis(step_rewards, jnp.clip(step, 0, count - 1), axis=1)
    return jnp.where(ends & (step < count), picked, 0.0)


@_validation.typed
def turn_ends(response_mask: jax.Array) -> jax.Array:
    """The last token of each turn, bool [B, R]: where the mask goes over to a hole, or ends.

    >>> turn_ends(jnp.array([[True, True, False, True, False]])).tolist()
    [[False, True, False, True, False]]
    """
    _check_rows("turn_ends", response_mask=response_mask)
    mask = jnp.asarray(response_mask)
    return mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))


def _check_rows(function, **masks):
    _validation.boolean(function, **masks)
    for name, mask in masks.items():
        if jnp.ndim(mask) != 2:
            remedy = "Add an axis to one row: x[None]."
            raise _validation.invalid(f"{name}.shape", jnp.shape(mask), "[B, R]", remedy, function)


def _by_threads(fn, rows, workers, timeout, retries):
    """Scores and failures; a pool that is not waited for when it is left, for a thread cannot be ended."""
    pool, failures = futures.ThreadPoolExecutor(workers), []
    scores: list[Any] = [None] * len(rows)
    left = list(range(len(rows)))
    try:
        for _ in range(retries + 1):
            failures, again = [], []
            # a deadline for each round of workers: what waits for a thread is not late yet
            pending = {i: pool.submit(fn, *rows[i]) for i in left}
            limit = None if timeout is None else timeout * math.ceil(len(left) / workers)
            futures.wait(pending.values(), limit)
            for i, future in pending.items():
                try:
                    scores[i] = future.result(0)
                except Exception as error:
                    future.cancel()
                    failures.append(error)
                    again.append(i)
            left = again
            if not left:
                break
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return scores, failures


def _by_coroutines(fn, rows, workers, timeout, retries):
    """Scores and failures of coroutines in an event loop of their own."""
    scores: list[Any] = [None] * len(rows)
    failures: list[Exception] = []

    async def judge(i, gate):
        async with gate:
            for attempt in range(retries + 1):
                try:
                    scores[i] = await asyncio.wait_for(fn(*rows[i]), timeout)
                    return
                except Exception as error:
                    if attempt == retries:
                        failures.append(error)

    async def judge_all():
        gate = asyncio.Semaphore(workers)
        await asyncio.gather(*(judge(i, gate) for i in range(len(rows))))

    # in a thread, since an event loop may be running here already, as in a notebook
    with futures.ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(judge_all())).result()
    return scores, failures


def _length(batch):
    return len(batch.tokens)


def _row(part, i):
    """Row i of samples or prompts, whose fields are arrays, lists, or trees of arrays."""
    fields = getattr(part, "_fields", None) or getattr(part, "__dataclass_fields__", None)
    if fields is None:
        return jax.tree.map(lambda x: x[i], part)
    pick = lambda x: x[i] if isinstance(x, list | tuple) else jax.tree.map(lambda leaf: leaf[i], x)
    return type(part)(
        **{name: None if getattr(part, name) is None else pick(getattr(part, name)) for name in fields}
    )
