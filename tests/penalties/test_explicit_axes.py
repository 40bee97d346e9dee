"""Weights that are sharded over the explicit axes of a mesh, which `jax.make_mesh` gives by default."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from proxlm import penalties as p

mesh = jax.make_mesh((4,), ("d",))
x = np.random.default_rng(0).standard_normal((8, 4), np.float32)
made = [
    p.l1(0.1), p.slope(0.1, axis=0), p.nuclear(0.1), p.stiefel(), p.spectral_ball(0.5), p.n_m(2, 4, axis=0),
    p.quantization_grid(np.arange(99.0)), p.reshaped(p.l1(0.1), (-1, 2)), p.flattened(p.l2(0.1)),
    p.group_lasso(0.1, p.grouping.heads(2, axis=0)), p.group_lasso(0.1, p.grouping.blocks((2, 2), (0, 1))),
    p.group_lasso(0.1, p.grouping.by_label(np.arange(8) // 3, axis=0)),
]
for spec, tried in ((P("d", None), made), (P(None, "d"), made[1::3])):
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    for penalty in tried:
        moved = jax.jit(penalty.prox).eval_shape(sharded, 0.1)
        assert moved.sharding.spec == spec, (penalty, moved)
        assert jax.jit(penalty.value).eval_shape(sharded).shape == ()
for make in (p.nuclear, lambda s: p.slope(s, axis=0)):
    prox = lambda x, s: make(s).prox(x, 0.5)
    np.testing.assert_allclose(jax.jit(prox)(sharded, 0.3), jax.jit(prox)(x, 0.3), atol=1e-5)
try:
    p.top_k(9, axis=0).prox(sharded, 0.1)
except ValueError as error:
    assert "top_k: k must be at most 8" in str(error)
"""


def test_every_kind_of_prox_traces_over_explicit_axes():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    given = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
