"""A sigmoid unit cannot answer -1: what that costs, and two repairs.

    python -m experiments.sigmoid_classifier           # writes report.txt and sigmoid.png

2 CPU cores (AMD EPYC, 2.6 GHz), 10 s. With labels in {-1, 1} and ½ (y - ŷ)² the sign of a sigmoid
is right on 0.500 ± 0.005 of held-out points (n=100 problems): it is always +1. Cut at ½ it is
right on 0.833 ± 0.006, as the repairs are (0.835 ± 0.004, tanh or logistic loss), but its weights
run off, |θ| 8 where the truth is 3 (5 of 100 converge), and its log loss is 0.537 ± 0.094 against
0.365 ± 0.008: squares ask for 2 P(+1) - 1, and below P = ½ the nearest output is 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

from experiments.support.run import cached_results, cli, configs, plot_panels, plots, runs, tables
from proxlm import penalties, solvers, training

BEST = "logistic loss, labels {0, 1}"
COLUMNS = ("sign of the output right", "side of the border right", "log loss", "off the true P(+1)", "|θ|")


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    problems: int = configs.field(100, smoke=3)  # each with weights, points and labels of its own
    rows: int = 200  # points to learn from
    held_out: int = configs.field(10_000, smoke=500)  # points to judge by
    certainty: float = 3.0  # |θ| of the unit that gave the labels: the larger, the fewer are odd
    learning_rate: float = 1.0  # of gradient descent
    most_steps: int = configs.field(4000, smoke=400)  # of gradient descent
    tolerance: float = 1e-6  # of descent and solver, in the weights
    strengths: int = configs.field(25, smoke=5)  # of the l1 penalty
    seed: int = 0  # of the problems

    def validate(self) -> None:
        configs.check_positive(self, "certainty", "learning_rate")


class Problem(NamedTuple):
    """Points, labels in {-1, 1}, and the probability of +1 that the labels were drawn from."""

    inputs: jax.Array  # [rows, 2]
    labels: jax.Array  # [rows]
    chances: jax.Array  # [rows]


def make_problem(key, config: Config) -> tuple[Problem, Problem]:
    """Normal points, P(+1 | x) = σ(θ·x) with |θ| given; those to learn and those held out."""
    key_angle, key_points, key_labels = jax.random.split(key, 3)
    angle = jax.random.uniform(key_angle, maxval=2 * jnp.pi)
    weights = config.certainty * jnp.array([jnp.cos(angle), jnp.sin(angle)])
    inputs = jax.random.normal(key_points, (config.rows + config.held_out, 2))
    chances = jax.nn.sigmoid(inputs @ weights)
    positive = jax.random.bernoulli(key_labels, chances)
    whole = Problem(inputs, jnp.where(positive, 1.0, -1.0), chances)
    cut = config.rows
    return Problem(*(x[:cut] for x in whole)), Problem(*(x[cut:] for x in whole))


# Name ↦ loss of the logits θ·x and the labels in {-1, 1}, one number an example.
LOSSES = {
    "sigmoid, labels {-1, 1}": lambda logits, y: optax.losses.l2_loss(jax.nn.sigmoid(logits), y),
    "tanh, labels {-1, 1}": lambda logits, y: optax.losses.l2_loss(jnp.tanh(logits), y),
    BEST: lambda logits, y: optax.losses.sigmoid_binary_cross_entropy(logits, (y + 1) / 2),
}
# Name ↦ the probability of +1 that a unit of these logits stands for.
CHANCES = {
    "sigmoid, labels {-1, 1}": jax.nn.sigmoid,
    "tanh, labels {-1, 1}": lambda logits: (jnp.tanh(logits) + 1) / 2,
    BEST: jax.nn.sigmoid,
}


def mean_loss(name: str, weights, problem):
    """Mean loss L(θ) of a unit without a bias."""
    return jnp.mean(LOSSES[name](problem.inputs @ weights, problem.labels))


def learn(name: str, problem: Problem, start, config: Config) -> Any:
    """Gradient descent from `start` until no weight moves; its history holds the path."""
    return training.fit(
        functools.partial(mean_loss, name),
        start,
        optax.sgd(config.learning_rate),
        problem,
        steps=config.most_steps,
        tolerance=config.tolerance,
        record=lambda weights: jnp.asarray(weights),  # pyright: ignore[reportArgumentType]
    )


def judge(name: str, found, held_out: Problem) -> dict[str, jax.Array]:
    """Metrics of a unit on held-out points."""
    logits = held_out.inputs @ found.params
    chances = CHANCES[name](logits)
    positive = held_out.labels > 0
    # Where a unit is certain and wrong the log loss has no bound; 1e-6 gives it one.
    chances_in = jnp.clip(chances, 1e-6, 1 - 1e-6)
    outputs = jnp.tanh(logits) if name.startswith("tanh") else jax.nn.sigmoid(logits)
    sign = outputs > (0.5 if name == BEST else 0.0)
    return {
        "sign of the output right": jnp.mean(sign == positive),
        "side of the border right": jnp.mean((logits > 0) == positive),
        "log loss": -jnp.mean(jnp.log(jnp.where(positive, chances_in, 1 - chances_in))),
        "off the true P(+1)": jnp.mean(jnp.abs(chances - held_out.chances)),
        "|θ|": jnp.linalg.norm(found.params),
        "steps": found.steps,
        "converged": found.converged,
    }


def solve(key, name: str, config: Config) -> dict[str, jax.Array]:
    """One problem by one of the losses."""
    problem, held_out = make_problem(key, config)
    return judge(name, learn(name, problem, jnp.zeros(2), config), held_out)


def sparse_path(problem: Problem, config: Config):
    """Weights `[strengths, 2]` of the l1-penalised logistic loss, and its strengths."""
    loss = functools.partial(mean_loss, BEST, problem=problem)
    top = solvers.strength_max(loss, jnp.zeros(2), penalties.l1)
    strengths = top * jnp.linspace(1.0, 0.01, config.strengths)
    found = solvers.path(
        loss, jnp.zeros(2), penalties.l1, strengths, tolerance=config.tolerance, implicit=False
    )
    return strengths, found


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Learns every problem by every loss; returns the numbers of the report."""
    keys = jax.random.split(jax.random.key(config.seed), config.problems)
    solve_all = lambda name: jax.jit(jax.vmap(functools.partial(solve, name=name, config=config)))(keys)
    found = cached_results.compute_each(run, "losses", tuple(LOSSES), solve_all, shown=("log loss",))
    problem, _ = make_problem(keys[0], config)
    strengths, path = jax.jit(functools.partial(sparse_path, config=config))(problem)
    return write(run, found, problem, strengths, path, config)


def write(run, found, problem: Problem, strengths, path, config: Config) -> dict[str, Any]:
    """Writes the report: means over problems, and figures of the first one."""
    rows = [
        [
            name,
            *(tables.mean_spread(values[column], 3) for column in COLUMNS),
            f"{int(values['converged'].sum())} of {len(values['converged'])}",
        ]
        for name, values in found.items()
    ]
    counts = np.count_nonzero(np.asarray(path.params), axis=1)
    both = np.asarray(strengths)[counts == 2].max(initial=0.0) / float(strengths[0])
    report = [
        "held-out, means over problems",
        tables.table(rows, ["unit and loss", *COLUMNS, "converged"]),
        "l1 on the logistic loss of the first problem: both weights are 0 at the largest strength,\n"
        f"one of them down to {both:.2f} of it; all {len(counts)} solutions converged: "
        f"{bool(jnp.all(path.converged))}",
    ]
    numbers = {name: {c: float(np.mean(v)) for c, v in values.items()} for name, values in found.items()}
    figure = draw(problem, strengths, path, config)
    return run.write(numbers | {"weights on the path": counts}, report, {"sigmoid": figure})


def draw(problem: Problem, strengths, path, config: Config) -> matplotlib.figure.Figure:
    """The points with their borders, the surfaces with the ways down, and the l1 path."""
    ends = {name: learn(name, problem, jnp.zeros(2), config).params for name in LOSSES}
    line = np.array([-4.0, 4.0])
    borders = {name: (-line * float(end[1]), line * float(end[0])) for name, end in ends.items()}
    groups = {
        label: np.asarray(problem.inputs)[np.asarray(problem.labels) == sign]
        for label, sign in {"+1": 1, "-1": -1}.items()
    }
    x = np.linspace(-4, 4, 200)
    chances = np.asarray(jax.nn.sigmoid(x))
    answers = {
        "truth": (x, chances),
        "what squares to {-1, 1} ask of it": (x, 2 * chances - 1),
        "the nearest a sigmoid comes": (x, np.maximum(2 * chances - 1, 0)),
    }
    ratio = np.asarray(strengths / strengths[0])
    weights = {f"θ{i}": (ratio, np.asarray(path.params)[:, i]) for i in range(2)}
    return plots.panels(
        {
            "the points, and the borders θ·x = 0": plot_panels.points(groups, "x1", "x2", borders),
            **{f"loss: {name}": surface(name, problem, end, config) for name, end in ends.items()},
            "the best output at true log-odds x": plot_panels.lines(answers, "true log-odds"),
            "l1 path of the logistic loss": plot_panels.lines(weights, "λ / λmax", "weight", log="x"),
        }
    )


def surface(name: str, problem: Problem, end, config: Config) -> plots.Draw:
    """The mean loss by weights, with the ways of descent from four starts."""
    starts = jnp.array([[-3.5, 3.0], [3.5, 3.5], [3.0, -3.5], [-3.0, -3.5]])
    grid = np.linspace(-8.0, 8.0, 61)
    places = jnp.asarray(np.stack(np.meshgrid(grid, grid), axis=-1))
    heights = jax.vmap(jax.vmap(lambda weights: mean_loss(name, weights, problem)))(places)
    lanes = jax.vmap(lambda start: learn(name, problem, start, config))(starts)
    ways = np.concatenate([starts[:, None], lanes.history.recorded], axis=1)
    paths = {f"from {tuple(start.tolist())}": way for start, way in zip(starts, ways, strict=True)}
    return plot_panels.surface(grid, grid, heights, "θ0", "θ1", paths, {"where descent from 0 ends": end})


if __name__ == "__main__":
    cli.run(main)
