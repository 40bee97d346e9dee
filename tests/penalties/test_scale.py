"""Ten million entries at three scales: sums in float32 must not drown what they add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties as p

pytestmark = pytest.mark.slow

SIZE = 10_000_000
SORTED = SIZE // 10  # for slope, which takes seconds a million

# Scale of the entries ↦ a penalty that moves them, and its value, by as much as they are large.
MAKERS = {
    "l1": lambda scale: p.l1(0.3 * scale),
    "elastic_net": lambda scale: p.elastic_net(0.3 * scale, 0.7),
    "squared_l2": lambda scale: p.squared_l2(0.7),
    "l2": lambda scale: p.l2(1e3 * scale),
    "linf": lambda scale: p.linf(1e6 * scale),
    "slope": lambda scale: p.slope(np.linspace(2 * scale, 0.0, SORTED, dtype=np.float32)),
    "group_lasso": lambda scale: p.whole(p.l2(2e3 * scale)),
    "mcp": lambda scale: p.mcp(0.3 * scale, gamma=3.0),
    "scad": lambda scale: p.scad(0.3 * scale, a=3.7),
    "log_sum": lambda scale: p.log_sum(0.3 * scale * scale, 0.5 * scale),
    "l_half": lambda scale: p.l_half(0.3 * scale**1.5),
    "l_two_thirds": lambda scale: p.l_two_thirds(0.3 * scale ** (4 / 3)),
    "l0": lambda scale: p.l0(0.3 * scale * scale),
    "top_k": lambda scale: p.top_k(SIZE // 3),
    "n_m": lambda scale: p.n_m(2, 4),
    "box": lambda scale: p.box(-0.5 * scale, 0.7 * scale),
    "l2_ball": lambda scale: p.l2_ball(1e3 * scale),
    "l2_sphere": lambda scale: p.l2_sphere(1e3 * scale),
    "l1_sphere": lambda scale: p.l1_sphere(1e6 * scale),
    "linf_ball": lambda scale: p.linf_ball(0.5 * scale),
    "halfspace": lambda scale: p.halfspace(jnp.ones(SIZE), -1e6 * scale),
    "hyperplane": lambda scale: p.hyperplane(jnp.ones(SIZE), 1e6 * scale),
    "capped_simplex": lambda scale: p.capped_simplex(0.3 * scale, 1e6 * scale),
    "sparse_simplex": lambda scale: p.sparse_simplex(1000, 1e3 * scale),
}


def results(make, x, dtype, scale):
    """The values before and after the prox, and where it led."""
    with jax.enable_x64(dtype == np.float64):
        penalty = make(scale)

        @jax.jit
        def run(x):
            moved = penalty.prox(x, 1.0)
            return jnp.stack([penalty.value(x), penalty.value(moved)]), moved

        values, moved = run(x.astype(dtype))
        return np.asarray(values, np.float64), np.asarray(moved, np.float64)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_float32_agrees_with_float64(name, scale):
    scale = float(np.float32(scale))
    size = SORTED if name == "slope" else SIZE
    x = np.random.default_rng(0).normal(size=size).astype(np.float32) * np.float32(scale)
    values, moved = results(MAKERS[name], x, np.float32, scale)
    right_values, right = results(MAKERS[name], x, np.float64, scale)
    np.testing.assert_allclose(values, right_values, rtol=5e-6)
    # An entry at the threshold of a nonconvex penalty may fall on either side of it.
    wrong = np.abs(moved - right) > 2e-6 * np.abs(right).max()
    assert wrong.mean() < 1e-6
