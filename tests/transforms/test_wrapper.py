"""A prox around an optimizer: its preconditioner, exact zeros, wrappers around and inside, and misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from proxlm import penalties, transforms
from proxlm.transforms import _states
from tests.arrays import numpy_normal as normal
from tests.transforms.walks import walk

RATE = 0.1


def tree(seed=0):
    return {"w": normal(seed, (5, 4)), "b": {"c": normal(seed + 1, (4,))}}


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)


def assert_close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def gradient_itself(state, gradient):
    return gradient


def first_moment(b1):
    return lambda state, gradient: optax.tree.bias_correction(state.mu, b1, state.count)


SOPHIA = contrib.sophia(
    RATE, weight_decay=0.0, hessian_diagonal_fn=contrib.hutchinson_estimator_diag_hessian(jax.random.key(0))
)
PRECONDITIONED = {
    "adam": (optax.adam(RATE), "adam", first_moment(0.9)),
    "adam, other": (
        optax.adam(RATE, b2=0.9, eps=0.1, eps_root=0.2),
        transforms.adam_preconditioner(0.9, 0.1, 0.2),
        first_moment(0.9),
    ),
    "yogi": (optax.yogi(RATE), transforms.adam_preconditioner(eps=1e-3), first_moment(0.9)),
    "adamax": (optax.adamax(RATE), "adamax", first_moment(0.9)),
    "amsgrad": (optax.amsgrad(RATE), "amsgrad", first_moment(0.9)),
    "adabelief": (optax.adabelief(RATE), "adabelief", first_moment(0.9)),
    "rmsprop": (optax.rmsprop(RATE), "rmsprop", gradient_itself),
    "rmsprop, outside": (
        optax.rmsprop(RATE, 0.8, 0.3, eps_in_sqrt=False, bias_correction=True),
        transforms.rms_preconditioner(0.8, 0.3, False),
        gradient_itself,
    ),
    "rmsprop, centred": (
        optax.rmsprop(RATE, centered=True, bias_correction=True),
        "rmsprop",
        gradient_itself,
    ),
    "adagrad": (optax.adagrad(RATE), "adagrad", gradient_itself),
    "adafactor": (optax.adafactor(RATE, min_dim_size_to_factor=2), "adafactor", gradient_itself),
    "adafactor, plain": (
        optax.adafactor(RATE, factored=False, multiply_by_parameter_scale=False, clipping_threshold=0.5),
        transforms.adafactor_preconditioner(False, 0.5),
        gradient_itself,
    ),
    "sophia": (SOPHIA, "sophia", first_moment(0.965)),
}


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_the_diagonal_is_what_the_optimizer_divides_by(name):
    inner, preconditioner, numerator = PRECONDITIONED[name]
    preconditioner = (
        _states.PRECONDITIONERS[preconditioner]() if isinstance(preconditioner, str) else preconditioner
    )
    inner = optax.with_extra_args_support(inner)
    objective = lambda x: sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(x))

    @jax.jit
    def both(params, gradients):
        state = inner.init(params)
        for gradient in gradients:
            before = state
            updates, state = inner.update(gradient, before, params, obj_fn=objective)
        divisor = _states.diagonal(preconditioner, before, state, params, gradient)
        (record,) = _states.find(state, preconditioner.types)
        return jax.tree.map(lambda u, d: -u * d / RATE, updates, divisor), numerator(record, gradient)

    assert_close(*both(tree(), [tree(seed) for seed in (3, 5, 7)]), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adafactor", "sophia", "amsgrad"])
def test_weights_without_a_gradient_are_marked(name):
    inner, preconditioner, _ = PRECONDITIONED[name]
    preconditioner = _states.PRECONDITIONERS[preconditioner]()
    inner = optax.with_extra_args_support(inner)
    third = (np.arange(5) == 2)[:, None]
    params, gradient = {"w": normal(0, (5, 4))}, {"w": np.where(third, 0, normal(1, (5, 4)))}
    objective = lambda x: jnp.sum(jnp.delete(x["w"], 2, axis=0) ** 2)

    @jax.jit
    def diagonal(params, gradient):
        after = before = inner.init(params)
        for _ in range(2):
            before = after
            _, after = inner.update(gradient, before, params, obj_fn=objective)
        return _states.diagonal(preconditioner, before, after, params, gradient)["w"]

    np.testing.assert_array_equal(np.asarray(diagonal(params, gradient)) == -1, third & np.ones((5, 4), bool))


def test_one_metric_step_by_hand():
    tx = transforms.proximal(optax.adam(0.5), penalties.l1(1.0), 0.5, preconditioner="adam")
    params, gradient = jnp.array([3.0, 0.5, -2.0]), jnp.array([2.0, 4.0, -0.5])
    path, state = walk(tx, params, [gradient])
    # D = |gradient|: Adam moves by 0.5, the thresholds are 0.25, 0.125 and 1.
    np.testing.assert_allclose(path[0], [2.25, 0.0, -0.5], atol=1e-5)
    assert state.count == 1 and state.anchor is None


@pytest.mark.parametrize("penalty", [penalties.l1(0.5), penalties.group_lasso(0.5, axis=-1)])
def test_without_a_metric_it_is_the_chain(penalty):
    rate = lambda count: 0.1 / (1 + count)
    gradients = [tree(seed) for seed in range(10, 14)]
    whole = transforms.proximal(optax.adam(rate), penalty, rate, every=2, anchored=True)
    link = transforms.apply_prox(penalty, rate, every=2, anchored=True)
    chained = optax.chain(optax.adam(rate), link)
    one, other = (walk(tx, tree(), gradients)[0] for tx in (whole, chained))
    assert_close(one, other, atol=0)


def test_a_group_is_moved_in_the_metric():
    penalty = penalties.group_lasso(6.0, axis=-1)
    tx = transforms.proximal(optax.adam(0.1), penalty, 0.1, preconditioner="adam")
    params, gradient = normal(0, (5, 4)), normal(1, (5, 4))
    path, _ = walk(tx, params, [gradient])
    divisor = np.abs(gradient) + np.float32(1e-8)
    expected = np.asarray(jax.jit(penalty.prox)(params - np.float32(0.1) * np.sign(gradient), 0.1 / divisor))
    np.testing.assert_allclose(path[0], expected, atol=1e-5)
    assert np.any(np.all(expected == 0, axis=-1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_exact_zeros_survive(dtype, floor, variant):
    params, gradient = normal(0, (40, 50)).astype(dtype), normal(1, (40, 50)).astype(dtype)
    tx = transforms.proximal_adam(0.1, penalties.l1(2.0), floor=floor)
    updates, _ = variant(tx.update)(gradient, tx.init(params), params)
    after = np.asarray(optax.apply_updates(params, updates))
    wide, pull = params.astype(np.float32), np.abs(gradient.astype(np.float32))
    rms = np.sqrt(np.mean(np.square(pull)))
    divisor = np.maximum(pull, floor * rms)
    target = wide - 0.1 * gradient.astype(np.float32) / divisor
    surely = np.abs(target) < 0.98 * 0.2 / divisor
    assert 300 < np.sum(surely) < 1500
    assert np.all(after[surely] == 0)
    assert np.sum(after == 0) < 1.1 * np.sum(surely)


@pytest.mark.parametrize("bounds", [{}, {"floor": 0.01}, {"cap": 10.0}])
def test_an_unseen_row_is_not_killed(bounds):
    params = np.full((6, 4), 0.02, np.float32)
    gradient = 1e-3 * (np.arange(24).reshape(6, 4) // 4 != 2).astype(np.float32)
    tx = transforms.proximal_adam(1e-3, penalties.l1(1e-4), **bounds)
    path, _ = walk(tx, params, [gradient] * 3)
    # λη a step, as decoupled: 1e-7, less than an ulp of 0.02 in a thousand.
    np.testing.assert_allclose(path[-1][2], 0.02, rtol=1e-4)
    assert np.all(path[-1][2] < 0.02)
    np.testing.assert_allclose(path[-1][0], 0.02 - 3 * 1.1e-3, rtol=1e-3)


def test_floor_and_cap_shorten_both_halves_of_the_step():
    gradient = np.array([1.0, 1.0, 1.0, 0.001], np.float32)
    rms = float(np.sqrt(np.mean(gradient**2)))
    still = lambda **bounds: transforms.proximal_adam(0.1, penalties.l1(0.0), **bounds)
    for bounds, size in (({"floor": 0.5}, 0.1 / (0.5 * rms)), ({"cap": 2.0}, 2.0)):
        updates = walk(still(**bounds), jnp.zeros(4), [gradient])[0][0]
        np.testing.assert_allclose(updates, [-0.1, -0.1, -0.1, -0.001 * size], rtol=1e-4)
        tx = transforms.proximal_adam(0.1, penalties.l1(1.0), **bounds)
        params = walk(tx, jnp.full(4, 5.0), [gradient])[0][0]
        np.testing.assert_allclose(params[3], 5.0 - 1.001 * size, rtol=1e-5)


@pytest.mark.parametrize("bounds", [{"floor": 1e-6}, {"cap": 1e6}])
def test_every_k_with_bounds_that_do_not_bind_multiplies_the_strength_alike(bounds):
    inner, preconditioner = optax.adam(0.1, b1=0.0, b2=0.0), transforms.adam_preconditioner(b2=0.0)
    tx = transforms.proximal(inner, penalties.l1(1.0), 0.1, preconditioner=preconditioner, every=2, **bounds)
    # Adam moves by 0.1 twice; the threshold is 2 · 0.1/1, once.
    path, _ = walk(tx, jnp.array([5.0, 4.0]), [jnp.ones(2)] * 2)
    np.testing.assert_allclose(path[-1], [4.6, 3.6], rtol=1e-5)


def test_every_k_takes_the_sum_of_rates_over_the_metric():
    rates = jnp.array([0.1, 0.2, 0.3, 0.4])
    tx = transforms.proximal_adam(lambda count: rates[count], penalties.l1(1.0), every=2)
    gradients = [jnp.full(2, 2.0)] * 4
    path = np.stack(walk(tx, jnp.full(2, 5.0), gradients)[0])[:, 0]
    np.testing.assert_allclose(path, [4.9, 4.7 - 0.15, 4.25, 3.85 - 0.35], rtol=1e-5)


def counted(penalty, log):
    """The same penalty, noting every execution of its prox."""

    def prox(x, step_size):
        jax.debug.callback(lambda: log.append(1))
        return penalty.prox(x, step_size)

    return penalty._replace(prox=prox)


@pytest.mark.parametrize("preconditioner", [None, "adam"])
def test_around_multi_steps_the_prox_runs_once_an_emitted_update(preconditioner):
    log = []
    rate = lambda count: 0.1 / (1 + count)
    follow = lambda inner, penalty: transforms.proximal(inner, penalty, rate, preconditioner=preconditioner)
    penalty = penalties.l1(0.5)
    tx = follow(optax.MultiSteps(optax.adam(rate), 3), counted(penalty, log))
    gradients = [tree(seed) for seed in range(10, 16)]
    path, state = walk(tx, tree(), gradients)
    jax.effects_barrier()
    assert len(log) == 2
    assert state.count == 2
    means = [jax.tree.map(lambda *g: np.mean(g, axis=0), *gradients[i : i + 3]) for i in (0, 3)]
    expected = walk(follow(optax.adam(rate), penalty), tree(), means)[0]
    for i, wanted in zip((2, 5), expected, strict=True):
        assert_close(path[i], wanted, atol=1e-6)
    assert_close(path[1], tree(), atol=0)


def test_multi_steps_around_runs_it_at_every_mini_step():
    log = []
    tx = transforms.proximal(optax.sgd(0.1), counted(penalties.l1(), log), 0.1)
    walk(optax.MultiSteps(tx, 3), tree(), [tree(2)] * 3)
    jax.effects_barrier()
    assert len(log) == 3


def test_extra_args_reach_the_inner_optimizer():
    def update(updates, state, params=None, *, pace, **extra_args):
        return jax.tree.map(lambda u: -pace * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    for tx in (inner, optax.MultiSteps(inner, 1)):
        tx = transforms.proximal(tx, penalties.l1(0.0), 0.1)
        assert walk(tx, jnp.ones(1), [jnp.ones(1)], pace=3.0)[0][0] == -2.0


@pytest.mark.parametrize("make", [transforms.proximal_sgd, transforms.proximal_adam])
def test_the_anchor_is_a_copy_so_that_params_and_state_may_be_donated_together(make):
    tx = make(0.1, penalties.l1(0.5), anchored=True)
    params = jax.tree.map(jnp.array, tree())
    state = tx.init(params)
    step = jax.jit(lambda params, state: tx.update(params, state, params), donate_argnums=(0, 1))
    updates, _ = step(params, state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


WRAPPED = {
    "chain": lambda adam: optax.chain(optax.clip(1e3), adam),
    "named chain": lambda adam: optax.named_chain(("clip", optax.clip(1e3)), ("adam", adam)),
    "masked": lambda adam: optax.masked(adam, {"w": True, "b": {"c": True}}),
    "partition": lambda adam: optax.partition({"one": adam, "two": adam}, {"w": "one", "b": {"c": "two"}}),
    "multi steps": lambda adam: optax.MultiSteps(adam, 1),
    "inject": lambda adam: optax.inject_hyperparams(optax.adam)(RATE),
    "if finite": lambda adam: optax.apply_if_finite(adam, 2),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_metric_is_found_under_wrappers(name):
    wrap = WRAPPED[name]
    gradients = [tree(seed) for seed in (10, 12)]
    follow = lambda inner: transforms.proximal(inner, penalties.l1(0.5), RATE, preconditioner="adam")
    one, other = (walk(follow(tx), tree(), gradients)[0] for tx in (wrap(optax.adam(RATE)), optax.adam(RATE)))
    assert_close(one, other, atol=1e-5)
    assert any(np.any(leaf == 0) for leaf in jax.tree.leaves(other))


def test_each_part_has_its_own_metric_under_partition():
    links = {
        "adam": transforms.proximal_adam(0.1, penalties.l1({"w": 0.5, "b": {"c": 9.0}})),
        "rms": transforms.proximal(optax.rmsprop(0.1), penalties.l1(0.5), 0.1, preconditioner="rmsprop"),
    }
    tx = optax.partition(links, {"w": "adam", "b": {"c": "rms"}})
    path, _ = walk(tx, tree(), [tree(4)])
    alone, _ = walk(links["rms"], tree()["b"], [tree(4)["b"]])
    assert_close(path[0]["b"], alone[0], atol=1e-6)


def init(inner, learning_rate=RATE, **options):
    penalty = options.pop("penalty", penalties.l1())
    return transforms.proximal(inner, penalty, learning_rate, **options).init(tree())


REFUSED = {
    "nothing after adam": (optax.scale_by_adam(), r"ends with ScaleByAdamState. Put proximal_step last"),
    "nothing after adam, masked": (
        optax.masked(optax.chain(optax.clip(1.0), optax.scale_by_rss()), {"w": True, "b": False}),
        r"ends with ScaleByRssState",
    ),
    "a prox inside": (
        optax.chain(optax.scale_by_adam(), transforms.apply_prox(penalties.l1(), RATE), optax.scale(-RATE)),
        r"holds ProximalState, which nothing may follow",
    ),
    "a dual averaging": (
        transforms.dual_averaging_adam(RATE, penalties.l1()),
        r"holds DualAveragingAdamState",
    ),
    "a pruning that ends": (
        optax.chain(optax.sgd(RATE), transforms.debias(transforms.prune_to(0.5), 9)),
        r"holds PruneState",
    ),
    "a prox twice": (transforms.proximal_sgd(RATE, penalties.l1()), r"holds ProximalState"),
    "schedule-free": (contrib.schedule_free_sgd(RATE), r"loses exact zeros: schedule_free"),
    "prodigy": (contrib.prodigy(RATE), r"with ProdigyState, which chooses its own step"),
    "rprop": (optax.rprop(RATE), r"with ScaleByRpropState, which chooses its own step"),
    "polyak": (optax.polyak_sgd(), r"asks for the value of the loss, which chooses its own step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_break_a_prox_are_refused(name):
    inner, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        init(inner)


def test_learning_rates_that_differ_are_refused():
    schedule = lambda count: 0.1 / (1 + count)
    with pytest.raises(ValueError, match=r"inner follows a schedule, and learning_rate is the numb"):
        init(optax.adam(schedule), 0.1)
    with pytest.raises(ValueError, match=r"learning_rate is a schedule, and nothing in inner"):
        init(optax.adam(0.1), schedule)
    with pytest.raises(ValueError, match=r"inner has learning_rate=0.3, and this one is 0.1"):
        init(optax.inject_hyperparams(optax.adam)(0.3), 0.1)
    init(optax.inject_hyperparams(optax.adam)(schedule), schedule)
    init(optax.GradientTransformation(lambda params: params, lambda u, s, p=None: (u, s)), schedule)


def test_the_decoupled_form_alone_fits_matrix_metrics():
    muon = contrib.muon(RATE)
    init(muon)
    with pytest.raises(ValueError, match=r"no state has the diagonal.*at w.*preconditioner=None only"):
        init(muon, preconditioner="adam")


def test_a_metric_that_is_not_there_is_missed():
    with pytest.raises(ValueError, match=r"adam_preconditioner can read, .*got one with ScaleByRms"):
        init(optax.rmsprop(RATE), preconditioner="adam")
    with pytest.raises(ValueError, match=r"preconditioner must be a Preconditioner.*got 'adm'"):
        init(optax.adam(RATE), preconditioner="adm")
    tx = transforms.proximal(
        optax.masked(optax.adam(RATE), {"w": True, "b": {"c": False}}),
        penalties.l1(),
        RATE,
        preconditioner="adam",
    )
    with pytest.raises(ValueError, match=r"no state has the diagonal of adam_preconditioner at b/c"):
        tx.init(tree())
    twice = optax.chain(optax.scale_by_adam(), optax.adam(RATE))
    tx = transforms.proximal(twice, penalties.l1(), RATE, preconditioner="adam")
    with pytest.raises(ValueError, match=r"several states have the diagonal"):
        tx.init(tree())


def test_a_penalty_without_a_metric_says_so_itself_at_init():
    with pytest.raises(ValueError, match=r"nuclear: step_size.*no prox in a diagonal metric"):
        transforms.proximal(optax.adam(RATE), penalties.nuclear(), RATE, preconditioner="adam").init(
            {"w": jnp.ones((3, 2))}
        )


def test_schedules_where_a_number_is_needed_are_refused():
    for bound in ("floor", "cap"):
        with pytest.raises(ValueError, match=rf"{bound} must be a number.*inject_hyperparams"):
            init(optax.adam(RATE), preconditioner="adam", **{bound: lambda count: 0.1})
    with pytest.raises(ValueError, match=r"proximal: cap must be a number > 0"):
        init(optax.adam(RATE), cap=0.0)


def test_only_an_optimizer_is_one():
    with pytest.raises(ValueError, match=r"inner must be an optax.GradientTransformation"):
        transforms.proximal(optax.adam, penalties.l1(), 0.1)
    with pytest.raises(ValueError, match=r"2 MultiSteps"):
        one = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
        tx = transforms.proximal(optax.chain(one, one), penalties.l1(), 0.1)
        tx.update(tree(), tx.init(tree()), tree())


@pytest.mark.parametrize("link", [transforms.proximal, transforms.aprox, transforms.proximal_schedule_free])
def test_another_learning_rate_than_that_inside_is_refused(link):
    params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    clipped = optax.chain(optax.clip(1.0), optax.adamw(1e-3))
    for inner in (clipped, optax.lion(1e-3), optax.chain(optax.sgd(2e-3), optax.scale(0.5))):
        link(inner, penalties.l1(0.1), 1e-3).init(params)
        with pytest.raises(
            ValueError, match=rf"{link.__name__}: inner has learning_rate=0.001.*this one is 1\."
        ):
            link(inner, penalties.l1(0.1), 1.0).init(params)
    # of a momentum the step is longer than the rate; an optimizer of one's own may have none
    link(optax.sgd(1e-3, 0.9), penalties.l1(0.1), 1e-2).init(params)
    link(optax.stateless(lambda updates, params: updates), penalties.l1(0.1), 1e-2).init(params)


def test_an_epsilon_that_float16_cannot_hold_is_refused():
    params = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2)}
    for settings in ({}, {"preconditioner": "adam"}):
        with pytest.raises(
            ValueError, match=r"proximal: inner must be an optimizer whose ε float16 can hold"
        ):
            transforms.proximal(optax.adam(0.1), penalties.l1(0.1), 0.1, **settings).init(params)
    transforms.proximal(optax.adam(0.1, eps=1e-4), penalties.l1(0.1), 0.1).init(params)
    transforms.proximal(optax.sgd(0.1), penalties.l1(0.1), 0.1).init(params)
