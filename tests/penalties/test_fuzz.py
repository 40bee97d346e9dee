"""Every public penalty on empty and single arrays, strengths and steps of 0, almost 0, huge and infinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties as p
from tests.arrays import numpy_normal as normal

STRENGTHS = (0.0, 1e-30, 1e30, np.inf)
STEPS = (0.0, 1e-30, 1e30, np.inf)
LEVELS = np.array([-1.5, -0.25, 0.0, 1.0], np.float32)
SHAPES = [(), (0,), (1,), (3, 0)]
MATRICES = [(0, 2), (1, 1), (3, 0), (3, 2)]
ROWS_OF_FOUR = [(0,), (4,), (3, 0), (2, 4)]


# name: (strength, x ↦ a penalty, shapes of x). A strength of 0 costs nothing, and an infinite one all but 0.
FUNCTIONS = {
    "l1": (lambda s, x: p.l1(s), SHAPES),
    "non_negative_l1": (lambda s, x: p.non_negative_l1(s), SHAPES),
    "elastic_net": (lambda s, x: p.elastic_net(s, s), SHAPES),
    "squared_l2": (lambda s, x: p.squared_l2(s), SHAPES),
    "l2": (lambda s, x: p.l2(s), SHAPES),
    "linf": (lambda s, x: p.linf(s), SHAPES),
    "slope": (lambda s, x: p.slope(s * jnp.ones(x.size)), [(0,), (1,), (3,)]),
    "group_lasso": (lambda s, x: p.group_lasso(s, axis=None), SHAPES),
    "group_lasso_rows": (lambda s, x: p.group_lasso(s, axis=-1), [(0,), (1,), (3, 0), (3, 2)]),
    "sparse_group_lasso": (lambda s, x: p.sparse_group_lasso(s, 0.5, axis=-1), [(0,), (1,), (3, 0), (3, 2)]),
    "group_mcp": (lambda s, x: p.group_mcp(s, axis=None), SHAPES),
    "group_l_half": (lambda s, x: p.group_l_half(s, axis=None), SHAPES),
    "l0": (lambda s, x: p.l0(s), SHAPES),
    "l_half": (lambda s, x: p.l_half(s), SHAPES),
    "l_two_thirds": (lambda s, x: p.l_two_thirds(s), SHAPES),
    "mcp": (lambda s, x: p.mcp(s), SHAPES),
    "scad": (lambda s, x: p.scad(s), SHAPES),
    "log_sum": (lambda s, x: p.log_sum(s), SHAPES),
    "total_variation": (lambda s, x: p.total_variation(s), SHAPES),
    "fused_lasso": (lambda s, x: p.fused_lasso(s, s), SHAPES),
    "prox_quant": (lambda s, x: p.prox_quant(s, LEVELS), SHAPES),
    "soft_two_four": (lambda s, x: p.soft_two_four(s), ROWS_OF_FOUR),
    "nuclear": (lambda s, x: p.nuclear(s), MATRICES),
    "spectral_norm": (lambda s, x: p.spectral_norm(s), MATRICES),
    "rank": (lambda s, x: p.rank(s), MATRICES),
    "schatten_half": (lambda s, x: p.schatten(s, 1 / 2), MATRICES),
    "schatten_two_thirds": (lambda s, x: p.schatten(s, 2 / 3), MATRICES),
    "schatten_two": (lambda s, x: p.schatten(s, 2), MATRICES),
    "spectral": (lambda s, x: p.spectral(p.l1(s)), MATRICES),
    "scale": (lambda s, x: p.scale(p.l1(1.0), s), SHAPES),
    "translate": (lambda s, x: p.translate(p.l1(s), jnp.ones(())), [()]),
    "add_quadratic": (lambda s, x: p.add_quadratic(p.l1(s), 1.0), SHAPES),
    "envelope": (lambda s, x: p.envelope(p.l1(s), 1.0), SHAPES),
    "masked": (lambda s, x: p.masked(p.l1(s), True), SHAPES),
    "restrict_to_non_negative": (lambda s, x: p.restrict_to_non_negative(p.l1(s)), SHAPES),
    "flattened": (lambda s, x: p.flattened(p.l2(s)), SHAPES),
}
# The same with radii r > 0, finite; an infinite one where it is no bound.
SETS = {
    "linf_ball": (lambda r, x: p.linf_ball(r), SHAPES),
    "l1_ball": (lambda r, x: p.l1_ball(r), SHAPES),
    "l2_ball": (lambda r, x: p.l2_ball(r), SHAPES),
    "l1_sphere": (lambda r, x: p.l1_sphere(r), [(), (1,), (3,)]),
    "l2_sphere": (lambda r, x: p.l2_sphere(r), [(), (1,), (3,)]),
    "simplex": (lambda r, x: p.simplex(r), [(), (1,), (3,)]),
    "capped_simplex": (lambda r, x: p.capped_simplex(r, r), [(), (1,), (3,)]),
    "sparse_simplex": (lambda r, x: p.sparse_simplex(1, r), [(), (1,), (3,)]),
    "box": (lambda r, x: p.box(-r, r), SHAPES),
    "halfspace": (lambda r, x: p.halfspace(jnp.ones(x.shape), r), SHAPES),
    "hyperplane": (lambda r, x: p.hyperplane(jnp.ones(x.shape), r), [(), (1,), (3,)]),
    "affine_set": (lambda r, x: p.affine_set(jnp.ones((1, x.size)), r * jnp.ones(1)), [(1,), (3,)]),
    "polyhedron": (lambda r, x: p.polyhedron(jnp.ones((1, x.size)), r * jnp.ones(1)), [(1,), (3,)]),
    "box_section": (lambda r, x: p.box_section(1.0, r, 0.0, r), [(1,), (3,)]),
    "transport": (lambda r, x: p.transport(r, r), [(1, 1), (2, 2)]),
    "binary": (lambda r, x: p.binary(r), SHAPES),
    "ternary": (lambda r, x: p.ternary(r), SHAPES),
    "quantization_grid": (lambda r, x: p.quantization_grid(LEVELS, r), SHAPES),
    "nuclear_ball": (lambda r, x: p.nuclear_ball(r), MATRICES),
    "spectral_ball": (lambda r, x: p.spectral_ball(r), MATRICES),
}
OTHERS = {
    "zero": (lambda s, x: p.zero(), SHAPES),
    "non_negative": (lambda s, x: p.non_negative(), SHAPES),
    "top_k": (lambda s, x: p.top_k(1), SHAPES),
    "n_m": (lambda s, x: p.n_m(2, 4), ROWS_OF_FOUR),
    "rank_ball": (lambda s, x: p.rank_ball(1), MATRICES),
    "stiefel": (lambda s, x: p.stiefel(), MATRICES),
    "birkhoff": (lambda s, x: p.birkhoff(), [(1, 1), (2, 2)]),
}
MOVE_AT_ZERO = ("non_negative_l1", "add_quadratic", "restrict_to_non_negative")
BALLS = ("linf_ball", "l1_ball", "l2_ball", "box", "nuclear_ball", "spectral_ball")
# One of each way to compute; the others in full size are among the slow proofs.
FAST = """
    l1 slope group_lasso_rows sparse_group_lasso group_mcp l_half scad log_sum prox_quant soft_two_four
    nuclear schatten_half l1_ball l2_sphere capped_simplex halfspace binary spectral_ball top_k scale envelope
""".split()
NUMBERS = (
    {name: STRENGTHS for name in FUNCTIONS}
    | {name: STRENGTHS[1 : 4 if name in BALLS else 3] for name in SETS}
    | {name: (0.0,) for name in OTHERS}
)
ALL = FUNCTIONS | SETS | OTHERS


def try_all(name, shape, dtype):
    """Value, its gradient, prox and its pullback of ones at x and at 0, for all strengths and steps."""
    make, x = ALL[name][0], normal(0, shape).astype(dtype)

    def at(given):
        strength, step_size, x = given
        penalty = make(strength, x)
        value, slope = jax.value_and_grad(penalty.value)(x)
        moved, pull = jax.vjp(lambda x: penalty.prox(x, step_size), x)
        return value, slope, moved, pull(jnp.ones_like(moved))[0]

    grid = [(s, t, y) for s in NUMBERS[name] for t in STEPS for y in (x, np.zeros_like(x))]
    strengths, steps = (np.float32([row[i] for row in grid]) for i in range(2))
    points = np.stack([row[2] for row in grid])
    results = jax.jit(lambda *rows: jax.lax.map(at, rows))(strengths, steps, points)
    return grid, [np.asarray(a).astype(np.float32) for a in results], results[2].dtype


def cases():
    """Every penalty, shape and dtype; by default some, of one shape with numbers in it, in float32."""
    for name, (_, shapes) in ALL.items():
        full = [shape for shape in shapes if 0 not in shape][-1]
        for shape in shapes:
            for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
                quick = name in FAST and shape == full and dtype == jnp.float32
                yield pytest.param(name, shape, dtype, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize("name, shape, dtype", list(cases()))
def test_nothing_is_nan_and_derivatives_are_finite(name, shape, dtype):
    grid, (values, slopes, moved, pulled), kept = try_all(name, shape, dtype)
    assert kept == dtype
    # float16 ends at 65504: beyond, results are infinite, and never NaN.
    sound = lambda a: np.all(np.isfinite(a)) or (dtype == jnp.float16 and not np.any(np.isnan(a)))
    for i, (strength, step_size, x) in enumerate(grid):
        at = f"strength {strength}, step {step_size}, x {x}"
        assert not np.isnan(values[i]), at
        assert sound(moved[i]), f"{at}: {moved[i]}"
        assert sound(pulled[i]), f"{at}: {pulled[i]}"
        assert sound(slopes[i]) or not np.isfinite(values[i]), f"{at}: {slopes[i]}"
        if name in FUNCTIONS and not strength * min(step_size, 1.0) > 0 and name not in MOVE_AT_ZERO:
            np.testing.assert_array_equal(moved[i], np.asarray(x, np.float32), err_msg=at)


def test_every_public_penalty_is_tried():
    others = {"Penalty", "Strength", "check", "Law", "Report", "grouping", "step_sizes"}  # no penalties
    made_of_others = {
        "add_linear",
        "change_basis",
        "conjugate",
        "group",
        "reshaped",
        "schatten",
        "separable_sum",
    }
    assert set(p.__all__) - others - made_of_others == set(ALL) & set(p.__all__)
