"""Run in one of several processes by `test_processes`: checkpoints, and PPO with a reward in Python.

python -m tests.processes COORDINATOR PROCESSES ID FOLDER save|restore|ppo AXES
"""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm import checkpoint, lm, sharding
from proxlm.policy import ppo, recipes

MODEL = lm.ModelConfig(8, num_layers=1, width=8, num_heads=2)


class Asked(NamedTuple):
    """Prompts with a word for each in ordinary Python."""

    tokens: Any
    mask: Any
    words: list[str]


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


def checkpoints(folder, command, mesh):
    """Saves, where asked to, and restores; asserts that every leaf is as it was, where it was."""
    wanted = fresh(mesh, 7)
    if command == "save":
        checkpoint.save(folder, 1, fresh(mesh, 3), {"lr": 0.1})
        checkpoint.save(folder, 2, wanted, {"lr": 0.1})
    found = checkpoint.restore(folder, fresh(mesh, 1), {"lr": 0.1})
    for name, leaf in wanted.items():
        assert getattr(found[name], "sharding", None) == getattr(leaf, "sharding", None), name
        for one, other in zip(words(leaf), words(found[name]), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def host_steps(folder, mesh):
    """Two iterations whose reward sees the rows of its own process; the first process writes the params."""
    actor, optimizer = lm.make_actor(MODEL, 3, critic=False), optax.sgd(0.1)
    settings = recipes.make("rloo", group_size=2, num_minibatches=2)
    asked = lambda key: np.asarray(jax.random.randint(key, (8, 2), 0, 8))
    prompts = lambda key: Asked(x := asked(key), None, [str(row[0]) for row in x])

    def reward(samples, asked):
        assert len(samples.tokens) == 16 // jax.process_count()
        assert [str(row[0]) for row in samples.tokens] == asked.words
        return [float(np.mean(row[2:] < 4)) for row in samples.tokens]

    state = sharding.put(ppo.init(actor.init(jax.random.key(0)), optimizer, settings), mesh)
    step = ppo.make_host_step(actor, reward, prompts, optimizer, settings)
    for seed in (1, 2):
        state, metrics = step(state, jax.random.key(seed))
    whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))(state.params)
    if jax.process_index() == 0:
        leaves = [np.asarray(x) for x in jax.tree.leaves(whole)]
        np.savez(pathlib.Path(folder) / f"{jax.process_count()}.npz", *leaves, reward=float(metrics.reward))


def main(folder, command, axes):
    mesh = sharding.make_mesh(axes)
    with jax.set_mesh(mesh):
        if command == "ppo":
            host_steps(folder, mesh)
        else:
            checkpoints(folder, command, mesh)


if __name__ == "__main__":
    coordinator, count, process, *rest = sys.argv[1:]
    if int(count) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, int(count), int(process))
    main(*rest)
