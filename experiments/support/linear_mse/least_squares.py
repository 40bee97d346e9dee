"""Least squares of a linear unit: descent, Adam, proximal chains, a solver and a formula."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import proxlm
from proxlm import penalties, solvers, training, transforms


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


def loss(weights, batch):
    """L(θ) = 1/(2N) Σ (y - ŷ)² of a linear unit with a bias."""
    return jnp.mean(optax.losses.l2_loss(features(batch.inputs) @ weights, batch.labels))


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
        errors = problem.labels - design @ weights
        slope = -jnp.mean(errors[:, None] * design, axis=0)
        return weights - rate * (slope + ridge * weights)

    return jax.lax.fori_loop(0, steps, move, jnp.zeros(3))


def chains(ridge):
    """Name ↦ (chain, whether the loss it is given holds the ridge, or its prox does)."""
    rate, penalty = 0.7, penalties.squared_l2(ridge)
    return {
        "gradient descent": (optax.sgd(rate), True),
        "Adam": (optax.adam(0.01), True),
        "proximal chain": (optax.chain(optax.sgd(rate), proxlm.apply_prox(penalty, rate)), False),
        "proximal Adam": (transforms.proximal_adam(0.01, penalty), False),
    }


def solve(problem: Problem, ridge, optimum, config: Any):
    """Every method from zero: its params, steps, whether it converged, its distances on the way."""
    names = "params", "steps", "converged", "distances"

    def penalised(weights, batch):
        return loss(weights, batch) + 0.5 * ridge * jnp.sum(jnp.square(weights))

    def fit(optimizer, holds_ridge):
        found = training.fit(
            penalised if holds_ridge else loss,
            jnp.zeros(3),
            optimizer,
            problem,
            steps=config.most_steps,
            tolerance=config.tolerance,
            record=lambda weights: jnp.max(jnp.abs(weights - optimum)),
        )
        values = found.params, found.steps, found.converged, found.history.recorded
        return dict(zip(names, values, strict=True))

    solution = solvers.proximal_gradient(
        lambda weights: loss(weights, problem),
        jnp.zeros(3),
        penalties.squared_l2(ridge),
        tolerance=config.tolerance,
        implicit=False,
    )
    nothing = jnp.full((config.most_steps,), jnp.nan)
    steps = config.most_steps // 10
    by_formula = by_hand(problem, ridge, 0.7, steps)
    others = {
        "descent by formula": (by_formula, jnp.int32(steps), jnp.array(True), nothing),
        "solver": (solution.params, solution.iterations, solution.converged, nothing),
    }
    return {name: fit(*chain) for name, chain in chains(ridge).items()} | {
        name: dict(zip(names, values, strict=True)) for name, values in others.items()
    }


def solve_all(problems: Problem, config: Any):
    """The optima `[problems, 2, 3]` and what was found by each method, without and with a ridge."""
    ridges = np.array([0.0, config.ridge], np.float32)
    ones = [Problem(*pair) for pair in zip(*map(np.asarray, problems), strict=True)]
    optima = np.array([[closed_form(problem, ridge) for ridge in ridges] for problem in ones])
    both = jax.vmap(functools.partial(solve, config=config), (None, 0, 0))
    found = jax.jit(jax.vmap(both, (0, None, 0)))(problems, ridges, optima.astype(np.float32))
    return {"optima": optima, "found": found}
