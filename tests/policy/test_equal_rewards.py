"""Rounding is never divided by an epsilon: equal rewards give exactly 0, others what float64 gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import advantages, aggregation, diagnostics, importance_weights

LARGEST = 1000
SIZES = (2, 3, 7, 8, 64, 777, 1000)
VALUES = (0.1, 0.35, 1 / 3, 0.7, -3.3, 100.1, 123.456, 10000.1, 1e6)
part = functools.partial


def over_batch(r, valid):
    return advantages.batch_scaled(r, LARGEST, valid, 1e-9)


def over_tokens(r, valid):
    """The token baseline, where every token of a response is worth the response's reward."""
    rewards = jnp.stack([jnp.zeros_like(r), r], axis=1)
    energies = jnp.broadcast_to(0.1 + jnp.arange(LARGEST)[:, None] / LARGEST, rewards.shape)
    return advantages.optimal_token(rewards, energies, jnp.stack([valid, valid], axis=1))[:, 0]


def normalised(r, valid):
    """Weights e^(r / max |r|), normalised: 1 more than their deviation from the mean, relative to it."""
    old = r / jnp.max(jnp.where(valid, jnp.abs(r), 1e-9))
    weigh = part(importance_weights.normalised, correction=part(importance_weights.truncated, high=9.0))
    return jnp.where(valid, weigh(old, jnp.zeros_like(old), valid) - 1.0, 0.0)


# (rewards [G], valid [G]) -> what must vanish where rewards are equal
VANISH = {
    "centred": advantages.centred,
    "leave one out": advantages.leave_one_out,
    "length weighted": lambda r, v: advantages.length_weighted(r, 1 + jnp.arange(LARGEST) % 7, v),
    "best minus second": advantages.best_minus_second,
    "pass at k": part(advantages.pass_at_k, k=2),
    "over the batch": over_batch,
    "over tokens": over_tokens,
    "variance": lambda r, v: aggregation.masked_var(r, v, ddof=1),
    "explained variance": lambda r, v: diagnostics.explained_variance(0.9 * r, r, v),
    "normalised weights": normalised,
}
VANISH |= {
    f"group relative {epsilon}": part(advantages.group_relative, epsilon=epsilon)
    for epsilon in (1e-4, 1e-6, 1e-9)
}
VANISH |= {"group relative, inside": part(advantages.group_relative, epsilon=1e-8, epsilon_inside=True)}
VANISH |= {f"whiten {ddof}": part(advantages.whiten, ddof=ddof, epsilon=1e-9) for ddof in (0, 1)}
VANISH |= {"whiten, outside": part(advantages.whiten, epsilon=1e-9, epsilon_inside=False)}


@functools.cache
def program():
    """All of them, jitted and vmapped over cases; rewards are computed in the same program."""

    def case(value, factor, valid):
        return {name: fn(value * factor, valid) for name, fn in VANISH.items()}

    return jax.jit(jax.vmap(case))


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_equal_rewards_give_exactly_nothing(dtype):
    cases = [(value, size) for value in VALUES for size in SIZES]
    valid = np.arange(LARGEST) < np.array([size for _, size in cases])[:, None]
    values = np.array([value for value, _ in cases], np.float32)[:, None] / 3
    rewards = jnp.asarray(np.where(valid, values, np.nan), dtype), jnp.full(valid.shape, 3, dtype)
    for name, results in program()(*rewards, valid).items():
        at = {cases[i] for i in np.argwhere(np.asarray(results))[:, 0]}
        assert not at, (name, sorted(at)[:5])


@pytest.mark.slow
def test_equal_rewards_give_exactly_nothing_as_written():
    rewards, valid = jnp.full(LARGEST, 0.35), jnp.ones(LARGEST, bool)
    for name, fn in VANISH.items():
        assert not np.any(fn(rewards, valid)), name


def test_nearly_equal_rewards_give_what_float64_gives():
    rng = np.random.default_rng(0)
    rows = [v + step * (np.arange(LARGEST) % 8) for v, step in ((1e4, 1e-3), (0.35, 1e-6), (1e6, 0.25))]
    rows += [-3.3 + 1e-5 * rng.normal(size=LARGEST), np.where(np.arange(LARGEST) == 1, 1e3, 0.35)]
    rewards = np.stack(rows).astype(np.float32)
    valid = np.arange(LARGEST) < np.array([[8], [64], [777], [1000], [8]])
    ours = program()(rewards, jnp.ones(rewards.shape), valid)
    for i, keep in enumerate(valid):
        r = rewards[i, keep].astype(np.float64)
        d, sample, population = r - r.mean(), r.std(ddof=1), r.std()
        lengths = 1 + np.arange(len(r)) % 7
        whole = {
            "centred": d,
            "leave one out": d * len(r) / (len(r) - 1),
            "length weighted": r - (lengths * r).sum() / lengths.sum(),
            "group relative 0.0001": d / (sample + 1e-4),
            "group relative 1e-09": d / (sample + 1e-9),
            "group relative, inside": d / np.sqrt(sample**2 + 1e-8),
            "over the batch": d / (sample + 1e-9),
            "whiten 0": d / np.sqrt(population**2 + 1e-9),
            "whiten 1": d / np.sqrt(sample**2 + 1e-9),
            "whiten, outside": d / (population + 1e-9),
            "variance": sample**2,
        }
        for name, exact in whole.items():
            mine = np.asarray(ours[name])[i][keep] if np.ndim(exact) else np.asarray(ours[name])[i]
            np.testing.assert_allclose(mine, exact, atol=1e-3 * np.abs(exact).max(), err_msg=(name, i))


def test_rewards_at_the_end_of_the_range_of_float32_give_numbers():
    rewards, valid = jnp.array([1e38, -1e38, 1.0, 0.0]), jnp.ones(4, bool)
    names = [name for name in VANISH if name not in ("over the batch", "over tokens", "length weighted")]
    values = jax.jit(lambda r: {name: VANISH[name](r, valid) for name in names})(rewards)
    for name in set(names) - {"variance", "explained variance"}:
        assert np.all(np.isfinite(values[name])), name
    np.testing.assert_allclose(values["centred"], rewards, atol=1e32)
    big = jax.jit(part(advantages.group_relative, epsilon=1e-9))(jnp.array([1e30, -1e30, 0.0]), valid[:3])
    np.testing.assert_allclose(big, [1.0, -1.0, 0.0], atol=1e-6)
