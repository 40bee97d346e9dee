"""Run in one of several processes by `test_checkpoint_processes`: every kind of leaf goes out and back.

python -m tests.checkpoint_processes COORDINATOR PROCESSES ID FOLDER save|restore AXES
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import checkpoint, sharding


def fresh(mesh, seed):
    """A state of local, replicated, sharded arrays and keys, NumPy arrays and numbers."""
    there = lambda x, *axes: jax.jit(lambda: x, out_shardings=jax.NamedSharding(mesh, jax.P(*axes)))()
    weights = np.arange(32, dtype=np.float32).reshape(8, 4) * seed
    return {
        "sharded": sharding.put({"w": weights}, mesh)["w"],
        "replicated": there(jnp.arange(3.0) * seed),
        "key": there(jax.random.key(seed)),
        "keys": there(jax.random.split(jax.random.key(seed), 8), mesh.axis_names[0]),
        "local": jnp.arange(5) * seed,
        "local_key": jax.random.key(seed),
        "numpy": np.arange(2.0) * seed,
        "step": seed,
    }


def words(leaf):
    """The numbers that this process holds of a leaf."""
    if jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, jax.Array):
        return [np.asarray(leaf)]
    return [np.asarray(shard.data) for shard in leaf.addressable_shards]


def main(folder, command, axes):
    mesh = sharding.make_mesh(axes)
    with jax.set_mesh(mesh):
        wanted = fresh(mesh, 7)
        if command == "save":
            checkpoint.save(folder, 1, fresh(mesh, 3), {"lr": 0.1})
            checkpoint.save(folder, 2, wanted, {"lr": 0.1})
        found = checkpoint.restore(folder, fresh(mesh, 1), {"lr": 0.1})
    for name, leaf in wanted.items():
        assert getattr(found[name], "sharding", None) == getattr(leaf, "sharding", None), name
        for one, other in zip(words(leaf), words(found[name]), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


if __name__ == "__main__":
    coordinator, count, process, *rest = sys.argv[1:]
    if int(count) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, int(count), int(process))
    main(*rest)
