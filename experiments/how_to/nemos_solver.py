"""NeMoS models fitted by proxlm, a backend in its registry. `python -m experiments.how_to.nemos_solver`"""

import jax.numpy as jnp
import nemos
import numpy as np
from nemos import solvers as registry

from proxlm import penalties, solvers


class State(solvers.SolverState):
    """The solver's state, with NeMoS's summary of it."""

    @property
    def stats(self):
        converged = (self.status == 0) | (self.status == 3)  # 3: to the precision of the dtype
        value, exhausted = self.moving.point.total, self.status == 1
        return registry.OptimizationInfo(value, self.iterations, converged, exhausted)


class Proximal(registry.AbstractSolver):
    """The penalty is the prox of NeMoS's regularizer; its value is the penalised loss where the loss is 0."""

    def __init__(
        self, unregularized_loss, regularizer, regularizer_strength, has_aux, init_params=None, tol=1e-6,
        maxiter=1000, stepsize=None, rule=None,
    ):  # fmt: skip
        fun, penalty = self._problem(unregularized_loss, regularizer, regularizer_strength, init_params)
        self.fun, self.maxiter, self.tol = fun, maxiter, tol
        options = {"rule": rule, "tolerance": tol or None, "max_iterations": maxiter, "step_size": stepsize}
        self._solver = solvers.Solver(fun, penalty, has_aux=has_aux, **options)

    def _problem(self, loss, regularizer, strength, params):
        operator = regularizer.get_proximal_operator(params, strength)
        cost = regularizer.penalized_loss(lambda params: jnp.zeros(()), params, strength)
        return loss, penalties.Penalty(cost, lambda params, t: operator(params, strength, scaling=t))

    def init_state(self, init_params, *args):
        return State(*self._solver.init(init_params, *args))

    def update(self, params, state, *args):
        params, state = self._solver.update(params, state, *args)
        return params, State(*state), state.aux

    def run(self, init_params, *args):
        solution = self._solver.run(init_params, *args)
        return solution.params, State(*solution.state), solution.aux

    @classmethod
    def get_accepted_arguments(cls):
        return {"tol", "maxiter", "stepsize", "rule"}

    def get_optim_info(self, state):
        return state.stats

    _get_optim_info = get_optim_info  # the name after NeMoS 0.2.8


class Smooth(Proximal):
    """The penalty belongs to the smooth loss."""

    def _problem(self, loss, regularizer, strength, params):
        return regularizer.penalized_loss(loss, params, strength), penalties.zero()


def register(default=False):
    """Adds the backend "proxlm" to each algorithm of NeMoS."""
    for name in ("GradientDescent", "ProximalGradient", "LBFGS", "BFGS", "NonlinearCG"):
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
