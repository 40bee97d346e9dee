"""Meshes and specs, and programs on four devices: each does its share, and the numbers are those of one."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm, sharding, training
from proxlm.policy import ppo

MESH = jax.sharding.AbstractMesh((2, 4), ("fsdp", "model"))


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ("data=3", r"make_mesh: mesh must be sizes that multiply to the 1 devices, got data=3"),
        ("data=-1,fsdp=-1", "mesh must be sizes that multiply"),
        ("", "got nothing"),
        ("data", "axes with their sizes, each once, as \"data=4,fsdp=2\", got 'data'"),
        ("data=1,data=1", "each once"),
        ("rows=1", "axis must be one of 'data', 'fsdp', 'model', 'seeds', got 'rows'"),
        ("data=0", "data must be a positive integer, or -1, got 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(sizes, named):
    with pytest.raises(ValueError, match=named):
        sharding.make_mesh(sizes, jax.devices()[:1])


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("blocks/attention/qkv/kernel", (8, 64, 12, 8), (None, "fsdp", "model", None)),
        ("attention/qkv/kernel", (64, 12, 8), ("fsdp", "model", None)),
        ("opt_state/0/mu/blocks/mlp/gate_up/kernel", (8, 64, 2, 96), (None, "fsdp", None, "model")),
        ("blocks/attention/qkv/lora/query/b", (8, 2, 64), (None, "fsdp", "model")),
        ("blocks/attention/qkv/lora/query/a", (8, 64, 2), (None, "fsdp", None)),
        ("blocks/mlp/down/lora/down/a", (8, 64, 2), (None, "model", "fsdp")),
        ("embedding/kernel", (50, 64), (None, "fsdp")),  # 50 rows do not divide by 4
        ("blocks/attention_norm/scale", (8, 7), (None, None)),
        ("step", (), ()),
    ],
)
def test_a_path_gives_its_spec(path, shape, axes):
    assert tuple(sharding.spec(path, shape, MESH)) == axes


@pytest.mark.parametrize(("microbatches", "name"), [(1, "batch"), (2, "a micro-batch")])
def test_a_batch_that_the_devices_do_not_divide_is_reported(microbatches, name):
    optimizer = optax.sgd(0.1)
    step = training.make_step(lambda w, x: jnp.mean(w * x), optimizer, microbatches=microbatches)
    supervised = lambda rows: step(training.init(jnp.ones(()), optimizer), jnp.ones((rows, 2)))
    config = ppo.PPOConfig(num_epochs=1, num_minibatches=2, num_microbatches=microbatches)
    model = lm.ModelConfig(8, num_layers=1, width=8, value_head=True)
    prompts = lambda rows: lambda key: lm.Prompts(jnp.ones((rows, 3), int))
    reward = lambda samples: jnp.ones(samples.tokens.shape[0])

    def policy(rows):
        actor = lm.make_actor(model, 4)
        state = ppo.init(actor.init(jax.random.key(0)), optimizer, config)
        return ppo.make_step(actor, reward, prompts(rows), optimizer, config)(state, jax.random.key(1))

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((4,), ("data",))):
        jax.eval_shape(functools.partial(supervised, 4 * microbatches))  # a warning would be an error
        for run, rows in ((supervised, 6 * microbatches), (policy, 12 * microbatches)):
            with pytest.warns(UserWarning, match=f"{name} has 6 rows, not divisible by 4 devices"):
                jax.eval_shape(functools.partial(run, rows))


@pytest.mark.parametrize(
    "amount",
    [
        "quick",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("all", "groups", "explicit", "tensors", "eight")
        ),
    ],
)
def test_four_or_eight_devices_share_the_work(amount):
    count = 8 if amount == "eight" else 4
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharded_programs", amount],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["train_lm", "reinforce"])
def test_an_experiment_on_two_devices_has_the_numbers_of_one(experiment, tmp_path):
    def losses(name, *options):
        subprocess.run(
            [
                sys.executable,
                "-m",
                f"experiments.{experiment}",
                "--smoke",
                "--runs",
                str(tmp_path / name),
                *options,
            ],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ
            | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
        )
        (log,) = (tmp_path / name).glob("*/2*/metrics.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        return [row[key] for row in rows for key in ("loss", "entropy") if key in row]

    alone = losses("one")
    assert alone
    for axes in ("data=-1", "fsdp=2"):
        np.testing.assert_allclose(losses(axes, "--mesh", axes), alone, rtol=1e-5)
