"""Small problems of reasoning, and pure functions that say whether an answer to one is right.

A prompt is the token of a task and five symbols; the answer follows, END included.

    copy 3 1 4 1 5         3 1 4 1 5 END
    reverse 3 1 4 1 5      5 1 4 1 3 END
    sort 3 1 4 1 5         1 1 3 4 5 END
    add 4 7 _ _ _          1 END            modulo 10
    countdown 3 1 4 6 _    3 - 1 + 4 END    6 from 3, 1 and 4, each used once: any way is right

All of it is traced; what is written for one problem gets its batches from `jax.vmap`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TASKS = ("copy", "reverse", "sort", "add", "countdown")
END, BLANK, PLUS, MINUS, FIRST_TASK = range(10, 15)
VOCAB_SIZE = FIRST_TASK + len(TASKS)
PROMPT = ANSWER = 6  # tokens
_WORDS = (*map(str, range(10)), "END", "_", "+", "-", *TASKS)

# every order of three numbers with every pair of signs
_ORDERS, _SIGNS = (
    np.array(rows)
    for rows in zip(
        *itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=2)),
        strict=True,
    )
)


class Problem(NamedTuple):
    """A prompt int `[PROMPT]` and one right answer to it, int `[ANSWER]`, blank after END."""

    prompt: jax.Array
    answer: jax.Array


def draw(key: jax.Array) -> Problem:
    """One problem, of any task."""
    key_task, key_digits, key_way = jax.random.split(key, 3)
    task = jax.random.randint(key_task, (), 0, len(TASKS))
    digits = jax.random.randint(key_digits, (5,), 0, 10)
    made = [*map(_word_task, (lambda x: x, jnp.flip, jnp.sort)), _add, _countdown]
    problems = [make(digits, key_way) for make in made]
    symbols, answer = (jnp.stack(column)[task] for column in zip(*problems, strict=True))
    return Problem(jnp.append(FIRST_TASK + task, symbols), answer)


def slip(key: jax.Array, answer: jax.Array) -> jax.Array:
    """The answer with one of its symbols, END not among them, replaced by a digit."""
    key_place, key_digit = jax.random.split(key)
    length = jnp.argmax(answer == END)
    place = jax.random.randint(key_place, (), 0, length)
    return answer.at[place].set(jax.random.randint(key_digit, (), 0, 10))


def right(tokens: jax.Array) -> jax.Array:
    """Correctness of the answer in tokens `[PROMPT + ANSWER]`; tokens after END are free."""
    symbols, answer = tokens[1:PROMPT], tokens[PROMPT:]
    same = lambda wanted: jnp.all(answer[: len(wanted)] == wanted)
    ended = lambda digits: jnp.append(digits, END)
    verdicts = [
        same(ended(symbols)),
        same(ended(jnp.flip(symbols))),
        same(ended(jnp.sort(symbols))),
        same(ended(_sum(symbols))),
        _reaches(symbols, answer),
    ]
    return jnp.stack(verdicts)[task_of(tokens)]


def all_right(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Rows of answers `[24, ANSWER]`, and which of them are right answers, each marked once."""
    ways = _expressions(problem.prompt[1:4])
    is_countdown = task_of(problem.prompt) == TASKS.index("countdown")
    rows = jnp.where(is_countdown, ways, problem.answer)
    prompts = jnp.broadcast_to(problem.prompt, rows.shape)
    is_right = jax.vmap(right)(jnp.concatenate([prompts, rows], axis=1))
    same = jnp.all(rows[:, None] == rows[None], axis=2)
    return rows, is_right & ~jnp.any(jnp.tril(same, -1), axis=1)


def task_of(tokens: jax.Array) -> jax.Array:
    """The number of the task in `TASKS`, from tokens `[..., T]` that start with a prompt."""
    return tokens[..., 0] - FIRST_TASK


def spell(tokens) -> str:
    """Tokens as words, up to the first END of the answer."""
    words = [_WORDS[token] for token in np.asarray(tokens)]
    return " ".join(words[: words.index("END") + 1] if "END" in words else words)


def _word_task(change):
    """A task whose answer is the five digits, changed."""
    return lambda digits, _: (digits, jnp.append(change(digits), END))


def _add(digits, _):
    symbols = digits.at[2:].set(BLANK)
    rest = jnp.full(ANSWER - 2, BLANK)
    return symbols, jnp.concatenate([_sum(symbols), jnp.array([END]), rest])


def _sum(symbols):
    return jnp.sum(symbols[:2], keepdims=True) % 10


def _countdown(digits, key):
    """Three numbers of 1 to 4, and what some way to add and subtract them comes to, 0 to 9."""
    digits = digits.at[:3].set(1 + digits[:3] % 4)
    numbers = digits[:3][_ORDERS]
    totals = numbers[:, 0] + jnp.sum(_SIGNS * numbers[:, 1:], axis=1)
    # the largest, less the second, plus the third is always one of them
    allowed = (totals >= 0) & (totals <= 9)
    goal = totals[jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))]
    first = jnp.argmax(totals == goal)
    return digits.at[3].set(goal).at[4].set(BLANK), _expressions(digits[:3])[first]


def _expressions(numbers):
    """All ways to write three numbers with two signs, `[24, ANSWER]`."""
    signs, rest = jnp.where(_SIGNS == 1, PLUS, MINUS), numbers[_ORDERS]
    columns = rest[:, 0], signs[:, 0], rest[:, 1], signs[:, 1], rest[:, 2], jnp.full(24, END)
    return jnp.stack(columns, axis=1)


def _reaches(symbols, answer):
    """Correctness of x ± y ± z END: the three numbers once each, and the fourth as the result."""
    numbers, signs = answer[0:5:2], answer[1:5:2]
    total = numbers[0] + jnp.sum(jnp.where(signs == PLUS, 1, -1) * numbers[1:])
    well_formed = jnp.all((signs == PLUS) | (signs == MINUS)) & (answer[5] == END)
    return well_formed & (total == symbols[3]) & jnp.all(jnp.sort(numbers) == jnp.sort(symbols[:3]))
