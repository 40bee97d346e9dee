"""Leaves that are not trained: integers, booleans, complex numbers and what is no array."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties, transforms

OTHERS = {"steps": jnp.arange(3), "on": jnp.array([True, False]), "z": jnp.array([1.0 + 2.0j])}
PARAMS = {"w": jnp.array([1.0, 0.02])} | OTHERS
GRADIENTS = {
    "w": jnp.array([0.5, 0.1]),
    "steps": jnp.ones(3, jnp.int32),
    "on": OTHERS["on"],
    "z": 0.5 * OTHERS["z"],
}
ONLY_W = penalties.masked(penalties.l1(0.5), lambda path, leaf: path == "w")
MADE = {
    "apply_prox": lambda g: transforms.apply_prox(g, 0.1, anchored=True),
    "apply_prox every": lambda g: transforms.apply_prox(g, 0.1, every=2),
    "proximal_step": lambda g: transforms.proximal_step(g, 0.1),
    "proximal_sgd": lambda g: transforms.proximal_sgd(0.1, g),
    "accelerated": lambda g: transforms.accelerated_proximal_gradient(0.1, g),
    "rda": lambda g: transforms.rda(0.1, g),
    "adagrad_rda": lambda g: transforms.adagrad_rda(0.1, g),
    "ftrl_proximal": lambda g: transforms.ftrl_proximal(0.1, g),
    "ramda": lambda g: transforms.ramda(0.1, g),
    "aprox": lambda g: transforms.aprox(optax.sgd(0.1), g, 0.1),
    "dual_averaging_adam": lambda g: transforms.dual_averaging_adam(0.1, g),
    "proximal_schedule_free_adam": lambda g: transforms.proximal_schedule_free_adam(0.1, g),
    "debias": lambda g: transforms.debias(transforms.apply_prox(g, 0.1), 5),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_masked_penalty_leaves_out_what_it_cannot_take(make):
    tx = make(ONLY_W)
    state = tx.init(PARAMS)
    updates, after = jax.jit(tx.update)(GRADIENTS, state, PARAMS)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    alone = make(penalties.l1(0.5))
    x = {"w": PARAMS["w"]}
    expected, _ = jax.jit(alone.update)({"w": GRADIENTS["w"]}, alone.init(x), x)
    np.testing.assert_array_equal(updates["w"], expected["w"])
    moved = optax.apply_updates(PARAMS, updates)
    assert jax.tree.map(lambda leaf: leaf.dtype, moved) == jax.tree.map(lambda leaf: leaf.dtype, PARAMS)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_other_penalties_refuse_them_with_place_and_remedy(make):
    params = {"w": PARAMS["w"], "steps": PARAMS["steps"]}
    with pytest.raises(ValueError, match=r"l1: x at steps must be .*int32.*penalties.masked.*set_to_zero"):
        make(penalties.l1(0.5)).init(params)


def test_integers_pass_a_last_link_and_stay_behind_an_optimizer():
    last, _ = MADE["apply_prox"](ONLY_W).update(GRADIENTS, MADE["apply_prox"](ONLY_W).init(PARAMS), PARAMS)
    np.testing.assert_array_equal(last["steps"], GRADIENTS["steps"])
    tx = MADE["proximal_step"](ONLY_W)
    whole, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(whole["steps"], [0, 0, 0])
    np.testing.assert_allclose(whole["z"], -0.1 * GRADIENTS["z"], rtol=1e-6)


def test_the_remedy_for_a_frozen_leaf_freezes_it():
    """As the messages say: optax.partition with set_to_zero around a whole optimizer."""
    parts = {"train": transforms.proximal_adam(0.1, penalties.l1(0.1)), "freeze": optax.set_to_zero()}
    tx, params = optax.partition(parts, {"a": "train", "c": "freeze"}), {"a": jnp.ones(2), "c": jnp.ones(1)}
    updates, _ = jax.jit(tx.update)({"a": jnp.ones(2), "c": jnp.full(1, 7.0)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["c"], [0.0])


@pytest.mark.parametrize("make", [MADE["apply_prox"], MADE["rda"]])
def test_a_leaf_that_is_no_array_is_named(make):
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"params at activation must be an array.*eqx.filter"):
        make(penalties.l1()).init(model)
    arrays = eqx.filter(model, eqx.is_array)
    tx = make(penalties.l1(0.5))
    updates, _ = jax.jit(tx.update)(arrays, tx.init(arrays), arrays)
    assert jax.tree.structure(updates) == jax.tree.structure(arrays)


def test_exact_updates_leave_out_the_same_leaves():
    updates = GRADIENTS | {"z": None}
    new = transforms.apply_prox_updates(PARAMS, updates, ONLY_W, 0.1)
    np.testing.assert_allclose(new["w"], [1.45, 0.07], rtol=1e-6)
    box = penalties.masked(penalties.box(0.0, 0.5), lambda path, leaf: path == "w")
    on_set = transforms.project_exactly(PARAMS, box)
    np.testing.assert_array_equal(on_set["w"], jnp.array([0.5, 0.02]))
    for moved in (new, on_set):
        for name, leaf in OTHERS.items():
            np.testing.assert_array_equal(moved[name], leaf)


def test_updates_of_another_tree_are_refused_with_the_place():
    for make in MADE.values():
        tx, params = make(penalties.l1(0.5)), {"w": jnp.ones(2), "b": jnp.ones(1)}
        with pytest.raises(ValueError, match=r"updates must be a tree like params, .* differs at b"):
            tx.update({"w": jnp.ones(2)}, tx.init(params), params)
