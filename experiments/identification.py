"""Support identification by stochastic methods: the lasso in minibatches, last iterates.

    python -m experiments.identification

4 minutes on one CPU core (AMD EPYC, 2.6 GHz), shared with other work. Five problems, five seeds
each (n=25): averaged thresholds in Adam's metric end with 0.2 false nonzeros of 100 weights, 0.2
missed and 0.04 that flicker, at a gap of 1.1e-4; a prox at each step with 7.1, 0 and 11.7, at
1.3e-4.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

from experiments.support.identification.methods import OURS, Method, methods
from experiments.support.run import cached_results, cli, configs, plots, runs, tables
from proxlm import _validation, penalties, solvers


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    problems: int = configs.field(5, smoke=2)  # each with its own features, noise and strength
    # of minibatches, for each problem; the steps are tuned on another one
    seeds: int = configs.field(5, smoke=2)
    steps: int = configs.field(20_000, smoke=1500)  # of each run
    batch: int = 32  # rows of a step
    rows: int = configs.field(200, smoke=60)  # examples of a problem
    weights: int = configs.field(100, smoke=20)  # features of a problem
    live: int = configs.field(10, smoke=4)  # weights that made the targets
    strength: float = 0.1  # of the one at which the first weight appears
    window: int = 100  # steps; a weight flickers that is zero in some of them and not in others
    only: tuple[str, ...] = configs.field((), smoke=("metric prox-Adam", OURS))  # the methods; none for all

    def validate(self) -> None:
        methods(self.steps, self.only)
        for name, most in {"live": "weights", "window": "steps"}.items():
            bound = getattr(self, most)
            _validation.within(1, bound, remedy=f"The upper bound is {most}.", **{name: getattr(self, name)})
        _validation.at_least(2, remedy="Columns are scaled by their deviation.", rows=self.rows)
        configs.check_shares(self, "strength")


class Problem(NamedTuple):
    """A lasso whose columns differ in scale by up to 100, and its solution."""

    features: Any
    targets: Any
    strength: Any
    solution: Any
    optimum: Any


class Outcome(NamedTuple):
    """The weights at the end of a run, and metrics after every window of steps."""

    weights: jax.Array
    gap: jax.Array
    false: jax.Array
    missed: jax.Array
    flicker: jax.Array


def objective(problem: Problem, weights):
    """½ |X w - y|²/n + λ |w|₁."""
    residual = problem.features @ weights - problem.targets
    return 0.5 * jnp.mean(jnp.square(residual)) + problem.strength * jnp.sum(jnp.abs(weights))


def make_problem(config: Config, seed: int) -> Problem:
    """Draws a problem and solves it in float64, to a tolerance that settles the support."""
    rng = np.random.RandomState(seed)
    features = rng.randn(config.rows, config.weights) * 10 ** rng.uniform(-1, 1, config.weights)
    truth = np.zeros(config.weights)
    truth[: config.live] = 3 * rng.randn(config.live) / features[:, : config.live].std(axis=0)
    targets = features @ truth + 0.5 * rng.randn(config.rows)
    strength = config.strength * np.abs(features.T @ targets).max() / config.rows
    with jax.enable_x64(True):
        solution, optimum = _solve(features, targets, strength)
        return Problem(features, targets, strength, np.asarray(solution), np.asarray(optimum))


@jax.jit
def _solve(features, targets, strength):
    loss = lambda weights: 0.5 * jnp.mean(jnp.square(features @ weights - targets))
    solution = solvers.proximal_gradient(
        loss,
        jnp.zeros(features.shape[1]),
        penalties.l1(strength),
        tolerance=1e-10,
        max_iterations=100_000,
        implicit=False,
    )
    problem = Problem(features, targets, strength, solution.params, optimum=jnp.zeros(()))
    return solution.params, objective(problem, solution.params)


def train(config: Config, method: Method, rate, problem: Problem, key) -> Outcome:
    """One run; the gap is relative to the optimum."""
    optimizer, penalty = method.make(rate, problem.strength), penalties.l1(problem.strength)
    support = problem.solution != 0

    def step(carry, key):
        weights, state, ever, always = carry
        rows = jax.random.randint(key, (config.batch,), 0, config.rows)
        features, targets = problem.features[rows], problem.targets[rows]
        slope = features.T @ (features @ weights - targets) / config.batch
        updates, state = optimizer.update(slope, state, weights)
        weights = optax.apply_updates(weights, updates)
        live = method.evaluate(state, weights, penalty) != 0
        return (weights, state, ever | live, always & live), None

    def window(carry, key):
        fresh = jnp.zeros_like(support), jnp.ones_like(support)
        keys = jax.random.split(key, config.window)
        (weights, state, ever, always), _ = jax.lax.scan(step, (*carry, *fresh), keys)
        point = method.evaluate(state, weights, penalty)
        live = point != 0
        gap = (objective(problem, point) - problem.optimum) / problem.optimum
        counts = (live & ~support, support & ~live, ever & ~always)
        return (weights, state), (gap, *(jnp.sum(count) for count in counts))

    start = jnp.zeros(config.weights)
    keys = jax.random.split(key, config.steps // config.window)
    (weights, state), history = jax.lax.scan(window, (start, optimizer.init(start)), keys)
    return Outcome(method.evaluate(state, weights, penalty), *history)


def compare(run, config: Config, problems: Problem) -> dict[str, tuple[float, Outcome]]:
    """name -> the best rate, and outcomes [problem, seed, ...] with it."""
    key_tune, key_run = jax.random.split(jax.random.key(0))
    keys = jax.random.split(key_run, config.seeds)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), problems)
    table = methods(config.steps, config.only)

    def tuned(name):
        over_problems = jax.vmap(functools.partial(train, config, table[name]), (None, 0, None))
        rates = jnp.array(table[name].rates)
        tried = jax.jit(jax.vmap(over_problems, (0, None, None)))(rates, single, key_tune)
        score = jnp.mean(tried.gap[..., -1], axis=1)
        best = rates[jnp.argmin(jnp.where(jnp.isfinite(score), score, jnp.inf))]
        runs_of = jax.jit(jax.vmap(over_problems, (None, None, 0), out_axes=1))
        return {"rate": best, "outcome": runs_of(best, single, keys)._asdict()}

    results = cached_results.compute_each(run, "methods", tuple(table), tuned, shown=("rate",))
    return {name: (float(x["rate"]), Outcome(**x["outcome"])) for name, x in results.items()}


def final_gaps(problems: Problem, weights) -> np.ndarray:
    """Relative gaps [problem, seed] in float64."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
        over_seeds = jax.vmap(objective, (None, 0))
        values = jax.vmap(over_seeds)(wide(problems), wide(weights))
        return np.asarray(values / problems.optimum[:, None] - 1)


def rows_of(outcomes: Mapping[str, tuple[float, Outcome]], problems: Problem, which) -> list[list]:
    """The table over some of the problems: means over these and all seeds."""
    rows = []
    for name, (rate, outcome) in outcomes.items():
        counts = [np.mean(x[which, :, -1]) for x in (outcome.false, outcome.missed)]
        gap = np.mean(final_gaps(problems, outcome.weights)[which])
        rows.append([name, rate, gap, *counts, np.mean(outcome.flicker[which, :, -1])])
    return rows


def plot(config: Config, outcomes: Mapping[str, tuple[float, Outcome]]) -> matplotlib.figure.Figure:
    """The convergence of some of the methods."""
    steps = np.arange(1, config.steps // config.window + 1) * config.window
    picked = ("prox-SGD", "metric prox-Adam", "FTRL-proximal", OURS, "schedule-free Adam (ours)")
    shown = [name for name in picked if name in outcomes]
    curve = lambda field: {
        name: (steps, np.mean(getattr(outcomes[name][1], field), axis=(0, 1))) for name in shown
    }
    positive = lambda curves: {k: (x, np.maximum(y, 1e-7)) for k, (x, y) in curves.items()}
    series = {
        "relative gap of the objective": positive(curve("gap")),
        "false nonzeros": curve("false"),
        f"weights that flicker in {config.window} steps": curve("flicker"),
    }
    return plots.curves(series, log_scale=("relative gap of the objective",))


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Runs all methods on all problems; returns the numbers of the report."""
    drawn = [make_problem(config, seed) for seed in range(config.problems)]
    problems = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    outcomes = compare(run, config, problems)
    headers = ["method", "rate", "gap", "false", "missed", "flicker"]
    report, numbers = [], {}
    for title, which in {"problem 0": [0], "all problems": slice(None)}.items():
        rows = rows_of(outcomes, problems, which)
        numbers[title] = {row[0]: dict(zip(headers[1:], map(float, row[1:]), strict=True)) for row in rows}
        support = np.mean(np.count_nonzero(problems.solution[which], axis=-1))
        report.append(
            f"{title}: {support:.1f} of {config.weights} weights in the solution, means over "
            f"{config.seeds} seeds\n{tables.table(rows, headers)}"
        )
    return run.write(numbers, report, {"identification": plot(config, outcomes)})


if __name__ == "__main__":
    cli.run(main)
