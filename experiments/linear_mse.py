"""A linear unit, mean squared error, 1000 epochs of Adam: does the loss end at 0.0117?

python -m experiments.linear_mse             writes report.txt and linear_mse.png
python -m experiments.linear_mse --smoke
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import proxlm
from experiments import figures, report, runs
from proxlm import losses, penalties, solvers, training, transforms

CLAIMED = 0.0117


@dataclasses.dataclass(frozen=True)
class Config:
    rows: int = 100
    batch: int = 32
    epochs: int = 1000
    adam_rate: float = 1e-3  # the default of Keras, as is its epsilon below
    starts: int = 1000  # initialisations, each with points of its own
    problems: int = 20  # repaired ones, solved by every method
    ridge: float = 0.1  # λ in L + ½ λ |θ|²; each problem is solved without it, too
    tolerance: float = 2e-7
    most_steps: int = 5000  # of a method that has not converged
    seed: int = 0

    def __post_init__(self):
        """Finds out now what would otherwise stop the run late."""
        for name in ("rows", "epochs", "starts", "problems", "most_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 1 <= self.batch <= self.rows:
            raise ValueError(f"batch={self.batch}: expected 1 to rows={self.rows}")
        for name in ("adam_rate", "tolerance", "ridge"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")


def smoke(config: Config) -> Config:
    """The same, too small to mean much."""
    return dataclasses.replace(config, epochs=40, starts=20, problems=2)


class Problem(NamedTuple):
    """Points and their labels in {-1, 1}."""

    inputs: jax.Array  # [rows, 2]
    labels: jax.Array  # [rows]


def make_problem(key, rows: int, low: float) -> Problem:
    """Points of a unit square that begins at `low` in both axes; the label is sign(x1 + x2)."""
    inputs = jax.random.uniform(key, (rows, 2), minval=low, maxval=low + 1.0)
    return Problem(inputs, jnp.where(jnp.sum(inputs, axis=1) > 0, 1.0, -1.0))


def features(inputs):
    """The inputs and a constant 1, whose weight is the bias, `[rows, 3]`."""
    return jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)


def loss(weights, batch: Problem):
    """L(θ) = 1/(2N) Σ (y - ŷ)² of a linear unit with a bias."""
    return jnp.mean(losses.squared(features(batch.inputs) @ weights, batch.labels))


def passes(config: Config, key):
    """Rows of every batch and which of them count, `[epochs, batches, batch]`: the last is short.

    100 rows in batches of 32 leave a fourth of 4 rows, whose mean weighs as much as another's.
    """
    batches = -(-config.rows // config.batch)
    keys = jax.random.split(key, config.epochs)
    orders = jax.vmap(lambda key: jax.random.permutation(key, config.rows))(keys)
    missing = batches * config.batch - config.rows
    shape = (config.epochs, batches, config.batch)
    rows = jnp.pad(orders, ((0, 0), (0, missing))).reshape(shape)
    counts = jnp.pad(jnp.ones(orders.shape), ((0, 0), (0, missing))).reshape(shape)
    return rows, counts


def run_program(key, shuffles, config: Config, bias: bool):
    """The text's program from one initialisation: its mean squared error after every epoch.

    Glorot's uniform weights, a bias of 0, Adam; the mean of (y - ŷ)² is that of Keras, 2 L.
    """
    key_points, key_weights = jax.random.split(key)
    points, labels = make_problem(key_points, config.rows, low=0.0)
    limit = np.sqrt(6.0 / (2 + 1))
    start = jax.random.uniform(key_weights, (2,), minval=-limit, maxval=limit)
    mask = jnp.array([1.0, 1.0, float(bias)])
    errors = lambda weights: jnp.square(features(points) @ (mask * weights) - labels)

    def batch_loss(weights, batch):
        rows, counts = batch
        return jnp.sum(counts * errors(weights)[rows]) / jnp.sum(counts)

    batches = shuffles[0].shape[1]
    batch_of = lambda step: jax.tree.map(lambda x: x[step // batches, step % batches], shuffles)
    found = training.fit(
        batch_loss, jnp.append(start, 0.0), optax.adam(config.adam_rate, eps=1e-7), batch_of,
        steps=config.epochs * batches, every=batches, record=lambda w: jnp.mean(errors(w)),
    )  # fmt: skip
    return found.history.recorded


def closed_form(problem: Problem, ridge) -> np.ndarray:
    """The minimiser of L + ½ λ |θ|²: (XᵀX/N + λ I)⁻¹ Xᵀy/N, in float64."""
    inputs, labels = (np.asarray(x, np.float64) for x in problem)
    design = np.concatenate([inputs, np.ones_like(inputs[:, :1])], axis=1)
    moments = design.T @ design / len(labels) + ridge * np.eye(3)
    return np.linalg.solve(moments, design.T @ labels / len(labels))


def by_hand(problem: Problem, ridge, rate, steps: int):
    """Gradient descent θ ← θ - η (∇L + λ θ), with the gradient in closed form."""
    design = features(problem.inputs)

    def move(_, weights):
        slope = losses.squared_gradient(design @ weights, problem.labels, design)
        return weights - rate * (slope + ridge * weights)

    return jax.lax.fori_loop(0, steps, move, jnp.zeros(3))


def chains(ridge):
    """Name ↦ (chain, whether the loss it is given holds the ridge, or its prox does)."""
    rate, penalty = 0.7, penalties.squared_l2(ridge)
    return {
        "gradient descent": (optax.sgd(rate), True),
        "Adam": (optax.adam(0.01), True),
        "proximal chain": (
            optax.chain(optax.sgd(rate), proxlm.apply_prox(penalty, rate)), False
        ),
        "proximal Adam": (transforms.proximal_adam(0.01, penalty), False),
    }  # fmt: skip


def solve(problem: Problem, ridge, optimum, config: Config):
    """Every method from zero: where it ends, its steps, whether it converged, and its path."""

    def penalised(weights, batch):
        return loss(weights, batch) + 0.5 * ridge * jnp.sum(jnp.square(weights))

    def fit(tx, holds_ridge):
        found = training.fit(
            penalised if holds_ridge else loss, jnp.zeros(3), tx, problem,
            steps=config.most_steps, tolerance=config.tolerance,
            record=lambda weights: jnp.max(jnp.abs(weights - optimum)),
        )  # fmt: skip
        return found.params, found.steps, found.converged, found.history.recorded

    solution = solvers.proximal_gradient(
        lambda weights: loss(weights, problem), jnp.zeros(3), penalties.squared_l2(ridge),
        tolerance=config.tolerance, implicit=False,
    )  # fmt: skip
    nothing = jnp.full((config.most_steps,), jnp.nan)
    steps = config.most_steps // 10
    by_formula = by_hand(problem, ridge, 0.7, steps)
    return {name: fit(*chain) for name, chain in chains(ridge).items()} | {
        "descent by formula": (by_formula, jnp.int32(steps), jnp.array(True), nothing),
        "solver": (solution.params, solution.iterations, solution.converged, nothing),
    }


def main(config: Config = Config(), options: runs.Options = runs.Options()) -> dict[str, Any]:
    """Runs the program from every start, solves the repaired problems; returns the numbers."""
    config = smoke(config) if options.smoke else config
    with runs.compilation(quick=options.smoke):
        run = runs.open_run("linear-mse", config, options.runs)
        print(f"run: {run.path}")
        key_starts, key_order, key_problems = jax.random.split(jax.random.key(config.seed), 3)
        shuffles = passes(config, key_order)
        keys = jax.random.split(key_starts, config.starts)
        program = functools.partial(run_program, shuffles=shuffles, config=config)
        errors = {
            name: np.asarray(jax.jit(jax.vmap(functools.partial(program, bias=bias)))(keys))
            for name, bias in {"with a bias": True, "without": False}.items()
        }
        keys = jax.random.split(key_problems, config.problems)
        problems = jax.vmap(lambda key: make_problem(key, config.rows, low=-0.5))(keys)
        return write(run, errors, *solve_all(problems, config), problems, config)


def solve_all(problems: Problem, config: Config):
    """Closed forms `[problems, 2, 3]` and what the methods found, each with and without a ridge."""
    ridges = np.array([0.0, config.ridge], np.float32)
    ones = [Problem(*pair) for pair in zip(*map(np.asarray, problems), strict=True)]
    optima = np.array([[closed_form(problem, ridge) for ridge in ridges] for problem in ones])
    both = jax.vmap(functools.partial(solve, config=config), (None, 0, 0))
    found = jax.jit(jax.vmap(both, (0, None, 0)))(problems, ridges, optima.astype(np.float32))
    return optima, jax.device_get(found)


def write(run, errors, optima, found, problems, config: Config) -> dict[str, Any]:
    """Prints and plots what the program reaches, and how far the methods are from one another."""
    epochs = np.arange(1, config.epochs + 1)
    final = {name: values[:, -1] for name, values in errors.items()}
    quantiles = (0, 0.05, 0.5, 0.95, 1)
    rows = [
        [name, *np.quantile(values, quantiles), 100 * np.mean(values < CLAIMED), _crossing(e)]
        for (name, values), e in zip(final.items(), errors.values(), strict=True)
    ]
    text = f"mean squared error after {config.epochs} epochs, {config.starts} initialisations\n\n"
    headers = ["", "least", "5 %", "median", "95 %", "most", f"% below {CLAIMED}", "median there"]
    text += report.table(rows, headers)
    text += "\n(median there: the first epoch after which the median is below the claim)\n"
    at_zero = optima[:, 0].astype(np.float32)
    outputs = jnp.einsum("pnd,pd->pn", jax.vmap(features)(problems.inputs), at_zero)
    least = np.mean(np.square(outputs - problems.labels), axis=1)
    right = np.mean(np.sign(outputs) == problems.labels, axis=1)
    positive = np.mean(np.asarray(problems.labels) > 0, axis=1)
    text += f"\nrepaired, x in [-½, ½)²: {report.mean_spread(positive)} of the labels are +1\n"
    text += f"least mean squared error {report.mean_spread(least, 3)}, where the sign of ŷ is"
    text += f" right on {report.mean_spread(right, 3)}\n\n"
    gaps = {name: np.max(np.abs(values[0] - optima), axis=2) for name, values in found.items()}
    rows = [
        [name, gaps[name][:, 0].max(), gaps[name][:, 1].max(),
         int(np.median(values[1])), f"{int(values[2].sum())} of {values[2].size}"]
        for name, values in found.items()
    ]  # fmt: skip
    headers = ["method", "off by, λ = 0", f"λ = {config.ridge}", "steps, median", "converged"]
    text += report.table(rows, headers)
    text += "\n(off by: the largest difference of a weight to the closed form, over all problems)"
    print(text)
    (run.path / "report.txt").write_text(text + "\n")
    curves = {
        f"{name}, {label}": (epochs, np.quantile(values, q, axis=0))
        for name, values in errors.items()
        for label, q in {"median": 0.5, "95 %": 0.95}.items()
    }
    paths = {
        name: (np.arange(1, config.most_steps + 1), values[3][0, 1])
        for name, values in found.items()
        if np.isfinite(values[3]).any()
    }
    figures.panels(run.path / "linear_mse.png", {
        "every label is +1: loss at the end": figures.histogram(
            final, "mean squared error", log=True, marks={"claimed": CLAIMED}),
        "on the way": figures.lines(
            curves, "epoch", "mean squared error", log="y", marks={"claimed": CLAIMED}),
        f"repaired, λ = {config.ridge}: distance to the closed form": figures.lines(
            paths, "step", log="xy"),
    })  # fmt: skip
    print(f"written to {run.path}")
    numbers = {f"median, {name}": float(np.median(values)) for name, values in final.items()}
    numbers |= {f"most, {name}": float(values.max()) for name, values in final.items()}
    numbers |= {f"least, {name}": float(values.min()) for name, values in final.items()}
    numbers["off_by"] = {name: float(gap.max()) for name, gap in gaps.items()}
    numbers["converged"] = {name: bool(values[2].all()) for name, values in found.items()}
    return numbers | {"least_error": least.tolist(), "accuracy": right.tolist()}


def _crossing(errors):
    below = np.median(errors, axis=0) < CLAIMED
    return int(np.argmax(below)) + 1 if below.any() else "never"


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
