"""Exact success on problems whose prompts share their solved ones: no sampling, so no noise of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.reinforce.prompting import Asker
from experiments.support.reinforce.tasks import Problem
from proxlm import lm


class Questions(NamedTuple):
    """Rows of solved problems, a question, its right answer and a line break.

    Attributes:
      tokens: `[N, T]`, padded on the right.
      mask: `[N, T]`, False where padded.
      first: `[N]`, the column of the answer's first token.
      size: `[N]`, the answer's tokens, without the line break.
      shared: how many columns are the same in all rows.
    """

    tokens: np.ndarray
    mask: np.ndarray
    first: np.ndarray
    size: np.ndarray
    shared: int


class Judgement(NamedTuple):
    """A number a problem, `[N]`.

    Attributes:
      right: the probability that a sampled answer is the right one.
      greedy: 1 where the likeliest tokens are the right ones.
      kl: nats between the policy and its start, summed over the tokens of the right answer.
    """

    right: np.ndarray | jax.Array
    greedy: np.ndarray | jax.Array
    kl: np.ndarray | jax.Array


def questions(asker: Asker, problems: Sequence[Problem]) -> Questions:
    """Writes the problems with their answers as tokens, an answer as the solved ones have it."""
    ids = lambda text: asker.tokenizer.encode(text, add_special_tokens=False).ids
    solved = ids("".join(f"{p.question} {p.answer}\n" for p in asker.shown))
    asked, answers = [ids(p.question) for p in problems], [ids(f" {p.answer}") for p in problems]
    rows = [[*solved, *a, *b, *ids("\n")] for a, b in zip(asked, answers, strict=True)]
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    first = len(solved) + np.array([len(row) for row in asked])
    mask = np.arange(longest) < lengths[:, None]
    return Questions(tokens, mask, first, np.array([len(row) for row in answers]), len(solved))


def make_judge(
    asker: Asker, config: lm.ModelConfig, asked: Questions, start: Any
) -> Callable[[Any, Any], Judgement]:
    """`judge(trained, frozen)`, and the KL from the parameters `start`, whose distribution it keeps."""
    words = asker.tokenizer.decode_batch([[i] for i in asker.stops()])
    ends = np.array([i for i, w in zip(asker.stops(), words, strict=True) if not w.split("\n")[0].strip()])
    steps = int(asked.size.max()) + 1

    def distributions(params):
        """Log-probabilities of the tokens of the answers and of what ends them, `[N, steps, V]`."""
        own = {"mask": jnp.asarray(asked.mask), "start": asked.shared, "group_size": len(asked.tokens)}
        scores: Any = lm.score(params, jnp.asarray(asked.tokens), config, full=True, **own)
        columns = asked.first[:, None] - asked.shared + np.arange(steps)
        columns = np.minimum(columns, asked.tokens.shape[1] - asked.shared - 1)
        return jnp.take_along_axis(scores.distribution, columns[:, :, None], axis=1)

    rows, place = np.arange(len(asked.tokens)), np.arange(steps)
    columns = np.minimum(asked.first[:, None] + place, asked.tokens.shape[1] - 1)
    targets = np.take_along_axis(asked.tokens, columns, axis=1)
    inside, counted = place < asked.size[:, None], place <= asked.size[:, None]

    @jax.jit
    def judge(trained, frozen, before):
        after = distributions(lm.trainable.join(trained, frozen))
        chosen = jnp.take_along_axis(after, targets[:, :, None], axis=2)[:, :, 0]
        end = after[rows, asked.size]
        log_prob = jnp.sum(chosen, axis=1, where=inside) + jax.nn.logsumexp(end[:, ends], axis=1)
        best = jnp.all((jnp.argmax(after, axis=2) == targets) | ~inside, axis=1)
        best &= jnp.isin(jnp.argmax(end, axis=1), ends)
        kl = jnp.sum(jnp.exp(after) * (after - before), axis=2)
        return Judgement(jnp.exp(log_prob), best.astype(float), jnp.sum(kl, axis=1, where=counted))

    before = jax.jit(distributions)(start)
    return lambda trained, frozen: jax.device_get(judge(trained, frozen, before))
