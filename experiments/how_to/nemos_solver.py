"""NeMoS models fitted by proxlm, a backend in its registry. `python -m experiments.how_to.nemos_solver`"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import nemos
import numpy as np
from nemos import solvers as registry

from proxlm import penalties, solvers

ALGORITHMS = "GradientDescent", "ProximalGradient", "LBFGS", "BFGS", "NonlinearCG"


class Stats(NamedTuple):
    """The fields of NeMoS's OptimizationInfo, which is no pytree in 0.2.8."""

    function_val: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    reached_max_steps: jax.Array


class State(NamedTuple):
    """The solver's state, and what NeMoS reads of it."""

    solver: Any
    stats: Stats


class Proximal(registry.AbstractSolver):
    """The penalty is the prox of NeMoS's regularizer; its value is the penalised loss where the loss is 0."""

    proximal = True

    def __init__(
        self, unregularized_loss, regularizer, regularizer_strength, has_aux, init_params=None, tol=1e-6,
        maxiter=1000, stepsize=None, rule=None,
    ):  # fmt: skip
        self.tol, self.maxiter, self.fun, self.has_aux = tol, maxiter, unregularized_loss, has_aux
        given = {"params": init_params, "strength": regularizer_strength}
        if self.proximal:
            operator = regularizer.get_proximal_operator(**given)
            cost = regularizer.penalized_loss(lambda params: jnp.zeros(()), **given)
            prox = lambda params, t: operator(params, regularizer_strength, scaling=t)
            penalty = penalties.Penalty(cost, prox)
        else:
            self.fun, penalty = regularizer.penalized_loss(unregularized_loss, **given), penalties.zero()
        options = {"rule": rule, "tolerance": tol, "max_iterations": maxiter, "step_size": stepsize}
        self._solver = solvers.Solver(self.fun, penalty, has_aux=has_aux, **options)

    def init_state(self, init_params, *args):
        return self._state(self._solver.init(init_params, *args))

    def update(self, params, state, *args):
        params, solver = self._solver.update(params, state.solver, *args)
        return params, self._state(solver), solver.aux

    def run(self, init_params, *args):
        solution = self._solver.run(init_params, *args)
        return solution.params, self._state(solution.state), solution.aux

    @classmethod
    def get_accepted_arguments(cls):
        return {"tol", "maxiter", "stepsize", "rule"}

    def get_optim_info(self, state):
        return registry.OptimizationInfo(*(number.item() for number in state.stats))

    _get_optim_info = get_optim_info  # the name after NeMoS 0.2.8

    def _state(self, solver):
        steps, value = solver.iterations, solver.moving.point.total
        converged = (solver.status == 0) | (solver.status == 3)  # 3: to the precision of the dtype
        return State(solver, Stats(value, steps, converged, steps == self.maxiter))


class Smooth(Proximal):
    """The penalty belongs to the smooth loss."""

    proximal = False


def register(default=False):
    """Adds the backend "proxlm" to each algorithm of NeMoS."""
    for name in ALGORITHMS:
        solver = Proximal if name == "ProximalGradient" else Smooth
        registry.register(name, solver, backend="proxlm", replace=True, default=default)


def main(backend="proxlm"):
    register()
    features = np.random.default_rng(0).normal(size=(200, 5))
    counts = np.random.default_rng(1).poisson(np.exp(features @ [0.5, -0.5, 0.0, 0.0, 0.0]))
    options = {"regularizer": "Lasso", "regularizer_strength": 0.1, "solver_kwargs": {"tol": 1e-5}}
    return nemos.glm.GLM(solver_name=f"ProximalGradient[{backend}]", **options).fit(features, counts).coef_


if __name__ == "__main__":
    print(*np.asarray(main()).round(3).tolist())
