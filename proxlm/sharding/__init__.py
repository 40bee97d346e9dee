"""Arrays over several devices: a mesh from one line, a table from paths to specs, and pins inside jit.

    mesh = sharding.make_mesh("data=2,fsdp=4")
    with jax.set_mesh(mesh):
        state = sharding.put(ppo.init(params, optimizer, config), mesh)
        state, metrics = jax.jit(step, donate_argnums=0)(state, key)

JAX's partitioner does the rest. The axes are
- `data`: rows of a batch; every device holds all weights;
- `fsdp`: rows of a batch, and the weights are cut too and gathered where a layer needs them;
- `model`: heads, hidden neurons and vocabulary;
- `seeds`: the axis of a `vmap` over seeds, on which nothing here is placed.

`rows`, `pieces` and `whole` stand in the training loops and in the model; they are the identity where no
mesh is set, and a step warns of a batch that the devices do not divide. Without a mesh, or on one device, a
program is what it would be without this module.

- `make_mesh`, `AXES`, `has_mesh`: the mesh
- `spec`, `shardings`, `replicated`: where a leaf of a state lies, by its path
- `put`, `init`: a state placed, or made, in its shards
- `rows`, `pieces`, `whole`: pins inside jit; `num_parts`: how many devices a batch is cut over
- `automatic`: functions under a mesh of explicit axes, the default of `jax.make_mesh`
- `local_rows`, `own_rows`, `own_numbers`, `of_rows`: batches of which each process has a part
"""

from proxlm.sharding._explicit import automatic
from proxlm.sharding._mesh import AXES, has_mesh, make_mesh
from proxlm.sharding._rows import local_rows, num_parts, of_rows, own_numbers, own_rows, pieces, rows
from proxlm.sharding._specs import init, put, replicated, shardings, spec, whole

__all__ = [
    "AXES",
    "automatic",
    "has_mesh",
    "init",
    "local_rows",
    "make_mesh",
    "num_parts",
    "of_rows",
    "own_numbers",
    "own_rows",
    "pieces",
    "put",
    "replicated",
    "rows",
    "shardings",
    "spec",
    "whole",
]
