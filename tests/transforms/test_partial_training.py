"""Fine-tuning of a part of a model, or by matrices of low rank: a matter of the chain alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import apply_prox, lm, penalties
from proxlm.policy import ppo, recipes
from tests.arrays import rough
from tests.policy.table_actor import compiled

MODEL = lm.ModelConfig(8, num_layers=1, width=8, num_heads=2, hidden_width=8, value_head=True)
ACTOR = lm.make_actor(MODEL, num_tokens=4)
CONFIG = recipes.make("ppo", num_epochs=2, num_minibatches=2)
PROMPTS = lambda key: lm.Prompts(jax.random.randint(key, (8, 2), 0, 8))
RATE = 0.02


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def labels(params):
    """Attention learns, and the value head that PPO needs; all else is frozen."""
    learns = lambda path, _: "learns" if "attention" in name(path) or "value" in name(path) else "frozen"
    return jax.tree_util.tree_map_with_path(learns, params)


def low_rank(strength):
    """Attention's weights end a step at a change of low rank from where they began."""
    matrices = {"qkv/kernel": ((1,), (2, 3)), "out/kernel": ((1, 2), (3,))}
    nuclear = lambda axes: penalties.nuclear(strength, *axes, method="gram")
    parts = {end: nuclear(axes) for end, axes in matrices.items()}
    of = lambda path, _: next((end for end in parts if path.endswith(end)), None)
    return penalties.separable_sum({**parts, None: penalties.zero()}, of)


def partial(*links):
    learner = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE), *links)
    return optax.partition({"learns": learner, "frozen": optax.set_to_zero()}, labels)


@functools.cache
def iterate(strength):
    """Params before and after an iteration of PPO, and the optimizer's state."""
    links = [apply_prox(low_rank(strength), RATE, anchored=True)] if strength else []
    tx = partial(*links)
    state = compiled(lambda params: ppo.init(params, tx, CONFIG))({"policy": rough(MODEL, 0.3)})
    reward = lambda samples: jnp.mean(samples.tokens[:, 2:] < 4, axis=1)
    step = compiled(ppo.make_step(ACTOR, reward, PROMPTS, tx, CONFIG))
    return state.params, *step(state, jax.random.key(1))


@functools.cache
def updated():
    """Params before and after two updates, and the optimizer's state."""
    before, tx = {"policy": rough(MODEL, 0.3)}, partial()

    @jax.jit
    def run(params):
        state = tx.init(params)
        for size in (1.0, -0.5):
            gradients = jax.tree.map(lambda x: size * jnp.cos(x), params)  # noqa: B023
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return before, *run(before)


def iterated():
    before, after, metrics = iterate(0.0)
    assert metrics.num_updates == 4
    return before, after.params, after.opt_state


by_updates_or_ppo = pytest.mark.parametrize("run", [updated, pytest.param(iterated, marks=pytest.mark.slow)])


@by_updates_or_ppo
def test_all_but_attention_keeps_every_bit(run):
    before, after, _ = run()
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), before, after)
    learnt = jax.tree.map(lambda label: label == "learns", labels(before))
    assert changed == learnt


@by_updates_or_ppo
def test_what_is_frozen_has_no_moments(run):
    before, _, state = run()
    learnt = [
        x.size
        for x, label in zip(jax.tree.leaves(before), jax.tree.leaves(labels(before)), strict=True)
        if label == "learns" and x.ndim > 0
    ]
    kept = sum(x.size for x in jax.tree.leaves(state) if x.ndim > 0)
    assert kept == 2 * sum(learnt)


@pytest.mark.slow
def test_a_nuclear_anchor_makes_the_change_of_low_rank():
    ranks = {}
    for strength in (0.0, 3.0):
        before, after, _ = iterate(strength)
        change = jax.tree.map(
            lambda a, b: a - b, after.params["policy"]["blocks"], before["policy"]["blocks"]
        )["attention"]["qkv"]["kernel"]
        size = np.linalg.svd(change[0].reshape(8, -1), compute_uv=False)
        ranks[strength] = int(np.sum(size > 1e-5 * size[0]))
    assert ranks[0.0] == 8 and 1 <= ranks[3.0] < 8
