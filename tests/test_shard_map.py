"""Loops inside `jax.shard_map`: what they carry varies over the same axes of the mesh from the start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm, penalties, policy, transforms
from proxlm.policy import advantages, ppo, recipes

ROWS = jax.P("rows")


def traced(function, *arrays):
    """The shapes that a function gives inside a shard_map over the rows of arrays."""
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.shard_map(function, mesh=mesh, in_specs=(ROWS,) * len(arrays), out_specs=ROWS)
    return jax.eval_shape(divided, *arrays)


@pytest.mark.parametrize(
    "penalty",
    [
        penalties.total_variation(0.1, axis=0),
        penalties.slope(0.1),
        penalties.capped_simplex(0.5),
        penalties.affine_set(np.ones((1, 12)), 1.0),
        penalties.polyhedron(np.ones((1, 12)), 1.0),
        penalties.box_section(1.0, 1.0, 0.0, 1.0),
        penalties.transport(1.0, 1.0),
    ],
    ids=repr,
)
def test_a_prox_traces(penalty):
    assert traced(lambda x: penalty.prox(x, 0.5), jnp.ones((4, 3))).shape == (4, 3)


def test_conditional_steps_trace():
    l1 = transforms.proximal_sgd(0.1, penalties.l1(0.1), 0.9)
    steps = optax.chain(transforms.skip_on_kl(l1, 0.1), transforms.prune_to(0.5, every=2))

    def train(params, gradients):
        step = lambda state, _: (steps.update(gradients, state, params, approx_kl=0.0)[1], None)
        state: Any = jax.lax.scan(step, steps.init(params), length=2)[0]
        return state[0].inner.inner_state[0].trace

    assert traced(train, jnp.ones((4, 3)), jnp.ones((4, 3))).shape == (4, 3)


def test_generalised_advantages_trace():
    gae = jax.vmap(advantages.gae)
    assert traced(gae, jnp.ones((4, 3)), jnp.zeros((4, 3)), jnp.ones((4, 3), bool))[0].shape == (4, 3)


def test_an_iteration_that_a_kl_can_end_traces():
    actor = policy.actor_from_logits(lambda params, tokens, mask: params[tokens], 3)
    config, optimizer = recipes.make("grpo", kl=None, group_size=2, max_kl=0.1), optax.sgd(0.1)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (2, 1), 0, 5))
    reward = lambda samples: samples.tokens[:, -1]
    step = ppo.make_step(actor, reward, prompts, optimizer, config)

    def learn(keys, params):
        return step(ppo.init(params[0], optimizer, config), keys[0])[0].params[None]

    assert traced(learn, jax.random.split(jax.random.key(0), 1), jnp.ones((1, 5, 5))).shape == (1, 5, 5)


def test_samples_trace():
    config, stop = lm.ModelConfig(vocab_size=8, num_layers=1, width=8), lm.SamplingConfig(stop_token=1)
    params, table = lm.init(jax.random.key(0), config), jnp.eye(8)
    bigrams = policy.actor_from_logits(lambda params, tokens, mask: params[tokens], 3, sampling=stop)

    def sample(keys, tokens):
        ours = lm.sample(keys[0], params, tokens, config, 3, sampling=stop)
        return ours.tokens, bigrams.sample(keys[0], table, lm.Prompts(tokens)).tokens

    shapes = traced(sample, jax.random.split(jax.random.key(0), 1), jnp.ones((4, 2), int))
    assert [x.shape for x in shapes] == [(4, 5), (4, 5)]
