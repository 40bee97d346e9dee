"""Every link gets along with the rest of Optax: one table, the same demands on each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import checkpoint, penalties, transforms
from tests.arrays import numpy_normal as normal
from tests.transforms.links import LINKS

STEPS = 4
# With an anchor and a count, a metric, a state of its own in which no params are kept.
FAMILIES = ("proximal", "proximal metric", "dual_averaging_adam")


def each(by_default, names=LINKS):
    """Parametrises by the names of links."""
    marks = lambda name: [] if name in by_default else [pytest.mark.slow]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in names])


every_link = each([name for name, link in LINKS.items() if not link.variant])
every_family = each(FAMILIES)


@pytest.fixture
def link(name):
    return LINKS[name]


def tree(seed, dtype=jnp.float32):
    draw = lambda offset, shape: normal(seed + offset, shape).astype(dtype)
    return {"w": draw(0, (4, 3)), "b": {"c": draw(1, (3,))}}


def gradients_of(dtype=jnp.float32):
    return jax.tree.map(lambda *g: np.stack(g), *[tree(10 * i, dtype) for i in range(1, 1 + STEPS)])


def run(tx, params, gradients, extra_args):
    """Params after each update, stacked, and the last state."""
    state = tx.init(params)
    step = functools.partial(move, tx, extra_args=extra_args)
    (_, state), path = jax.lax.scan(step, (params, state), gradients)
    return path, state


def move(tx, carry, gradient, extra_args):
    params, state = carry
    updates, state = tx.update(gradient, state, params, **extra_args)
    params = optax.apply_updates(params, updates)
    return (params, state), params


def trained(link, learning_rate=0.1, wrap=lambda tx: tx, params=None, gradients=None):
    """The path of a link's params, compiled."""
    params = tree(0) if params is None else params
    gradients = gradients_of() if gradients is None else gradients
    follow = lambda params, gradients: run(
        wrap(link.make(learning_rate)), params, gradients, link.extra_args
    )[0]
    return jax.tree.map(np.asarray, jax.jit(follow)(params, gradients))


@functools.cache
def baseline(name):
    """The path of params and the last state of a link as it is, compiled once for all tests."""
    link = LINKS[name]
    follow = lambda params, gradients: run(link.make(0.1), params, gradients, link.extra_args)
    return jax.tree.map(np.asarray, jax.jit(follow)(tree(0), gradients_of()))


@functools.cache
def alone(name):
    """The path of a link that moves one leaf."""
    part = lambda whole: {"w": whole["w"]}
    return trained(LINKS[name], params=part(tree(0)), gradients=part(gradients_of()))


def assert_close(one, other, atol=2e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=atol
        ),
        one,
        other,
    )


def forms(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)


@every_family
def test_extra_args_that_mean_nothing_change_nothing(name, link):
    stranger = {**link.extra_args, "nobody_knows_this": jnp.ones(())}
    assert_close(trained(link._replace(extra_args=stranger)), baseline(name)[0], atol=0)


@every_family
def test_inject_hyperparams_gives_the_same_path(name, link):
    make = lambda learning_rate: link.make(learning_rate)
    inject = lambda rate: optax.inject_hyperparams(make)(learning_rate=rate)
    assert_close(trained(link._replace(make=inject)), baseline(name)[0])


@every_link
@pytest.mark.slow
def test_inject_hyperparams_gives_the_same_path_for_a_schedule(name, link):
    inject = lambda rate: optax.inject_hyperparams(lambda learning_rate: link.make(learning_rate))(rate)
    schedule = lambda count: 0.1 / (1 + count)
    assert_close(trained(link._replace(make=inject), schedule), trained(link, schedule))


@every_link
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_have_the_dtype_of_the_params_and_the_state_keeps_its_form(name, link, dtype):
    tx, params = link.make(0.1), tree(0, dtype)
    state = jax.eval_shape(tx.init, params)
    update = lambda g, s, p: tx.update(g, s, p, **link.extra_args)
    updates, after = jax.eval_shape(update, tree(5, dtype), state, params)
    assert forms(updates) == forms(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert forms(after) == forms(state)


@every_link
@pytest.mark.parametrize("way", ["traced", pytest.param("eager", marks=pytest.mark.slow)])
def test_with_float64_enabled_float32_stays(name, link, way):
    params = jax.tree.map(jnp.array, tree(0) | {"half": normal(9, (2, 3)).astype(jnp.bfloat16)})
    with jax.enable_x64(True):
        for rate in (0.1, lambda count: 0.1 / (1 + count)):
            tx = link.make(rate)
            call = jax.eval_shape if way == "traced" else lambda f, *args: f(*args)
            state = call(tx.init, params)
            update = lambda g, s, p: tx.update(g, s, p, **link.extra_args)  # noqa: B023
            after = call(update, params, state, params)
            assert forms(after) == (forms(params), forms(state))
            assert all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(after))


@every_family
def test_a_leaf_without_an_update_is_frozen(name, link):
    """Whether or not the state was made for it; what is left is updated as if alone."""
    tx, params, gradients = link.make(0.1), tree(0), tree(5) | {"w": None}
    part = lambda whole: {"b": whole["b"]}
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, **link.extra_args))
    alone, _ = update(part(gradients), tx.init(part(params)), part(params))
    for first in (params | {"w": None}, params):
        if first is params and link.begins_with_adam:
            continue  # scale_by_adam itself wants a state made without the leaf
        state = tx.init(first)
        updates, after = update(gradients, state, params)
        assert updates["w"] is None and jax.tree.structure(after) == jax.tree.structure(state)
        assert_close(updates["b"], alone["b"], atol=0)


@each(("proximal metric",), FAMILIES)
def test_compiled_is_eager(name, link):
    tx, params, gradients = link.make(0.1), jax.tree.map(jnp.array, tree(0)), gradients_of()
    carry, path = (params, tx.init(params)), []
    for i in range(STEPS):
        gradient = jax.tree.map(lambda g: jnp.array(g[i]), gradients)  # noqa: B023
        carry, params = move(tx, carry, gradient, link.extra_args)
        path.append(params)
    assert_close(jax.tree.map(lambda *p: np.stack(p), *path), baseline(name)[0])


@every_family
def test_multi_steps_is_one_step_on_the_mean(name, link):
    gradients = gradients_of()
    path = trained(link, wrap=lambda tx: optax.MultiSteps(tx, 2).gradient_transformation())
    means = jax.tree.map(lambda g: np.asarray(g).reshape(2, 2, *g.shape[1:]).mean(1), gradients)
    assert_close(jax.tree.map(lambda p: p[1::2], path), trained(link, gradients=means))
    assert_close(jax.tree.map(lambda p: p[0], path), tree(0), atol=0)


@every_family
def test_masked_leaves_are_left_alone(name, link):
    path = trained(link, wrap=lambda tx: optax.masked(tx, {"w": True, "b": {"c": False}}))
    assert_close(path["w"], alone(name)["w"])
    assert_close(path["b"]["c"], np.asarray(tree(0)["b"]["c"]) + np.cumsum(gradients_of()["b"]["c"], 0))


@every_family
def test_partition_runs_each_part_as_if_alone(name, link):
    labels = {"w": "one", "b": {"c": "two"}}
    split = lambda tx: optax.partition({"one": tx, "two": link.make(0.3)}, labels)
    path = trained(link, wrap=split)
    assert_close(path["w"], alone(name)["w"])
    part = lambda whole: {"b": whole["b"]}
    assert_close(part(path), trained(link, 0.3, params=part(tree(0)), gradients=part(gradients_of())))


@every_family
def test_apply_if_finite_skips_a_bad_step(name, link):
    spoil = lambda g: np.concatenate([g[:1], np.full_like(g[:1], np.nan), g[1:-1]])
    bad = jax.tree.map(spoil, gradients_of())
    path = trained(link, wrap=lambda tx: optax.apply_if_finite(tx, 3), gradients=bad)
    skipped = jax.tree.map(lambda p: np.delete(p, 1, axis=0), path)
    assert_close(skipped, jax.tree.map(lambda p: p[:-1], baseline(name)[0]))
    jax.tree.map(lambda p: np.testing.assert_array_equal(p[1], p[0]), path)


@every_link
@pytest.mark.slow
def test_vmap_over_learning_rates_is_the_loop(name, link):
    rates = jnp.array([0.0, 0.1, 0.4])
    follow = lambda rate: run(link.make(rate), tree(0), gradients_of(), link.extra_args)[0]
    swept = jax.jit(jax.vmap(follow))(rates)
    looped = [trained(link, rate) for rate in rates]
    assert_close(swept, jax.tree.map(lambda *p: np.stack(p), *looped))


@every_family
def test_donated_buffers_change_nothing(name, link):
    tx, gradients = link.make(0.1), gradients_of()
    step = jax.jit(functools.partial(move, tx), donate_argnums=0)
    params = tree(0)
    carry, path = (params, jax.jit(tx.init)(params)), []
    for i in range(STEPS):
        carry, params = step(carry, jax.tree.map(lambda g: g[i], gradients), link.extra_args)  # noqa: B023
        path.append(jax.tree.map(np.asarray, params))
    assert_close(jax.tree.map(lambda *p: np.stack(p), *path), baseline(name)[0])


SCALED = [name for name, link in LINKS.items() if not link.moves_at_zero]


# Dual averaging is tried in a file of its own.
@each(("proximal_step", "apply_prox", "proximal", "proximal metric", "scheduled"), SCALED)
def test_learning_rate_zero_moves_nothing(name, link):
    path = trained(link, lambda count: 0.1 * jnp.minimum(count, 1))
    assert_close(jax.tree.map(lambda p: p[0], path), tree(0), atol=0)
    assert any(np.any(p[1] != p[0]) for p in jax.tree.leaves(path))


@every_link
def test_missing_params_are_missed_in_the_words_of_optax(name, link):
    if not link.needs_params:
        pytest.skip("does not read the params")
    tx = link.make(0.1)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(tree(1), tx.init(tree(0)), **link.extra_args)


@every_link
def test_optax_finds_the_params_in_a_state(name, link):
    tx = link.make(0.1)
    state = tx.init(tree(0))
    marked = optax.tree_map_params(tx, lambda leaf: 1, state, transform_non_params=lambda leaf: 0)
    assert jax.tree.leaves(marked) == [int(leaf.ndim > 0) for leaf in jax.tree.leaves(state)]


@each(("proximal metric", "dual_averaging_adam"))
def test_nothing_to_train_is_no_error(name, link):
    tx = link.make(0.1)
    assert tx.update({}, tx.init({}), {}, **link.extra_args)[0] == {}


def test_no_penalty_on_nothing_is_no_error():
    tx = transforms.proximal_adam(0.1, penalties.zero())
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_optax_finds_the_params_beside_a_strength_for_each_leaf():
    tx = transforms.proximal_adam(0.1, penalties.l1({"w": 1.0, "b": {"c": 0.5}}))
    found = optax.tree_map_params(tx, lambda _: 1, tx.init(tree(0)), transform_non_params=lambda _: 0)
    assert sum(jax.tree.leaves(found)) == 4  # the two moments of two leaves


def test_states_survive_a_checkpoint(tmp_path):
    states = {name: baseline(name)[1] for name in (*FAMILIES, "proximal_schedule_free_adam", "prune_to")}
    checkpoint.save(tmp_path, 1, states, {})
    back = checkpoint.restore(tmp_path, jax.eval_shape(lambda: states), {})
    assert forms(back) == forms(states)
    jax.tree.map(np.testing.assert_array_equal, back, states)
