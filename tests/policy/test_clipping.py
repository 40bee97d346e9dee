import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import aggregation
from proxlm.policy import losses as loss_lib
from tests.policy import vectors_on_disk


def clipped(log_probs, old, advantages, *bounds, **options):
    """PPO's loss where every token counts."""
    every = jnp.ones(jnp.shape(log_probs), bool)
    return loss_lib.clipped(log_probs, old, advantages, every, *bounds, **options)


def ratio(log_probs, old, max_log_ratio=20.0):
    every = jnp.ones(jnp.shape(log_probs), bool)
    return jnp.exp(loss_lib.log_ratio(log_probs, old, every, max_log_ratio=max_log_ratio))


@pytest.mark.parametrize("index", range(2))
@pytest.mark.parametrize("row", range(6))
def test_surrogate_and_gradient_are_rlaxs(index, row):
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("rlax")["surrogate"][index]
    clip = expected["clip"]

    def loss(log_probs):
        old, advantages = given.logp_old[row], given.advantages[row]
        return jnp.mean(clipped(log_probs, old, advantages, clip, clip))

    value, gradient = jax.jit(jax.value_and_grad(loss))(given.logp[row])
    np.testing.assert_allclose(value, expected["losses"][row], atol=1e-5)
    np.testing.assert_allclose(gradient, expected["gradients"][row], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("token", "token"), ("sequence", "sequence"), ("dual_clip", "token"), ("clip_higher", "token")],
)
def test_surrogate_and_gradient_are_openrlhfs(name, kind, variant):
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("openrlhf")[name]
    options = {k: v for k, v in expected.items() if k in ("dual_clip", "clip_high")}
    weights = aggregation.weights(given.mask, kind)

    def loss(log_probs):
        old, advantages = given.logp_old, given.advantages
        losses = clipped(log_probs, old, advantages, **options)
        return aggregation.weighted_sum(losses, weights)

    value, gradient = variant(jax.value_and_grad(loss))(given.logp)
    np.testing.assert_allclose(value, expected["loss"], atol=1e-5)
    np.testing.assert_allclose(gradient, expected["gradient"], atol=1e-5)


@pytest.mark.parametrize("index", range(2))
def test_value_loss_and_gradient_are_verls(index, variant):
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("verl")["value_loss"][index]
    weights = aggregation.token_weights(given.mask)

    def loss(values):
        losses = loss_lib.clipped_value_loss(values, given.values_old, given.returns, expected["clip"])
        return aggregation.weighted_sum(losses, weights)

    value, gradient = variant(jax.value_and_grad(loss))(given.values)
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected["gradient"], atol=1e-5)


@pytest.mark.parametrize("index", range(2))
def test_value_loss_is_openrlhfs_with_its_half(index):
    given, expected = (vectors_on_disk.inputs(), vectors_on_disk.load("openrlhf")["value_loss"][index])
    losses = loss_lib.clipped_value_loss(given.values, given.values_old, given.returns, expected["clip"])
    ours = aggregation.masked_mean(losses, given.mask)
    np.testing.assert_allclose(ours, expected["loss"], rtol=1e-5)


def test_surrogate_by_hand(variant):
    rho = jnp.array([1.5, 0.5, 1.1, 1.5, 0.5, 9.0])
    advantages = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])

    def losses(log_probs):
        return clipped(log_probs, jnp.zeros(6), advantages, clip_low=0.2, clip_high=0.3, dual_clip=3.0)

    value, pull_back = jax.vjp(variant(losses), jnp.log(rho))
    np.testing.assert_allclose(value, [-2.6, -1.0, -2.2, 3.0, 1.6, 6.0], rtol=1e-6)
    # d/dlog π of -A ρ is -A ρ, and 0 where a bound holds: ρ too high, too low, or dual
    np.testing.assert_allclose(pull_back(jnp.ones(6))[0], [0.0, -1.0, -2.2, 3.0, 0.0, 0.0], rtol=1e-6)


def test_value_loss_by_hand(variant):
    values, old = jnp.array([1.0, 1.0, 0.1, -1.0]), jnp.zeros(4)
    returns = jnp.array([2.0, -2.0, 2.0, -1.0])

    def losses(values):
        return loss_lib.clipped_value_loss(values, old, returns, 0.5)

    value, pull_back = jax.vjp(variant(losses), values)
    # towards R beyond the clip: no gradient; away from R, or inside: V - R
    np.testing.assert_allclose(value, [1.125, 4.5, 1.805, 0.125], rtol=1e-6)
    np.testing.assert_allclose(pull_back(jnp.ones(4))[0], [0.0, 3.0, -1.9, 0.0], rtol=1e-6)


def test_value_loss_without_clip_is_half_the_square():
    values, returns = jnp.array([1.0, -2.0]), jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(
        loss_lib.clipped_value_loss(values, values + 9.0, returns, clip=None), [0.5, 4.5]
    )


def test_on_the_first_minibatch_the_gradient_is_the_policy_gradient(variant):
    given = vectors_on_disk.inputs()
    old, advantages = given.logp_old, given.advantages
    loss = lambda x: jnp.sum(clipped(x, old, advantages, dual_clip=3.0))
    np.testing.assert_array_equal(ratio(old, old), jnp.ones_like(old))
    np.testing.assert_allclose(variant(jax.grad(loss))(old), -advantages, rtol=1e-6)
    # also where the caller hands the same traced log-probs in twice
    same = lambda x: jnp.sum(clipped(x, x, advantages))
    np.testing.assert_allclose(variant(jax.grad(same))(old), -advantages, rtol=1e-6)


def test_no_gradient_flows_into_what_is_data():
    given = vectors_on_disk.inputs()
    surrogate = lambda *xs: jnp.sum(clipped(given.logp, *xs))
    value_loss = lambda *xs: jnp.sum(loss_lib.clipped_value_loss(given.values, *xs))
    gradients = jax.jit(jax.grad(surrogate, (0, 1)))(given.logp_old, given.advantages)
    gradients += jax.jit(jax.grad(value_loss, (0, 1)))(given.values_old, given.returns)
    assert not any(np.any(gradient) for gradient in gradients)


def test_a_token_the_policy_can_no_longer_say_has_ratio_near_0_and_no_nan():
    value, gradient = jax.jit(jax.value_and_grad(ratio))(-jnp.inf, -1.0)
    assert 0.0 < value < 1e-8 and gradient == 0.0


def test_dual_clip_leaves_good_tokens_alone():
    log_probs, old = np.float32([3.0, 0.1]), np.zeros(2, np.float32)
    both = jax.jit(lambda a: [clipped(log_probs, old, a, dual_clip=dual) for dual in (None, 1.5)])
    for advantage in (0.0, 0.7):
        np.testing.assert_array_equal(*both(advantage))


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_selected_inputs_keep_poison_out_of_every_bit_of_loss_and_gradient(poison, variant):
    given = vectors_on_disk.inputs()
    weights = aggregation.token_weights(given.mask)

    def loss(log_probs, values, data):
        hide = lambda x: aggregation.select(x, given.mask)
        old, advantages, old_values, returns = map(hide, data)
        policy = clipped(hide(log_probs), old, advantages, dual_clip=3.0)
        value = loss_lib.clipped_value_loss(hide(values), old_values, returns)
        return aggregation.weighted_sum(policy + value, weights)

    def at(fill):
        put = lambda x: np.where(given.mask, x, np.float32(fill))
        data = tuple(map(put, (given.logp_old, given.advantages, given.values_old, given.returns)))
        return variant(jax.value_and_grad(loss, (0, 1)))(put(given.logp), put(given.values), data)

    clean, dirty = jax.tree.leaves(at(0.5)), jax.tree.leaves(at(poison))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)


def test_settings_may_be_traced():
    clips = np.float32([0.1, 0.2])
    loss = lambda clip: clipped(1.0, 0.0, 1.0, clip, clip, 3.0 + clip)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(clips), -(1.0 + clips), rtol=1e-6)
    value_loss = lambda clip: loss_lib.clipped_value_loss(1.0, 0.0, 1.0, clip)
    found = jax.jit(jax.vmap(value_loss))(clips)
    np.testing.assert_allclose(found, 0.5 * (1.0 - clips) ** 2, rtol=1e-6)


def test_ratios_of_half_precision_log_probs_are_float32():
    rho = ratio(jnp.bfloat16(-1.0), jnp.float32(-1.0625))
    assert rho.dtype == jnp.float32
    np.testing.assert_allclose(rho, np.exp(0.0625), rtol=1e-6)


def test_wrong_arguments_are_named():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"advantages\.shape must be .*, got \(2, 1\)"):
        clipped(x, x, x[:, :1])
    with pytest.raises(ValueError, match=r"clip_low must be .*, got 1\.5"):
        clipped(x, x, x, clip_low=1.5)
    with pytest.raises(ValueError, match=r"clip_high must be .*, got -0\.1"):
        clipped(x, x, x, clip_high=-0.1)
    with pytest.raises(ValueError, match=r"dual_clip must be .*, got 0\.5"):
        clipped(x, x, x, dual_clip=0.5)
    with pytest.raises(ValueError, match=r"max_log_ratio must be .*, got 100"):
        ratio(x, x, max_log_ratio=100)
    with pytest.raises(ValueError, match=r"returns\.shape must be .*, got \(3,\)"):
        loss_lib.clipped_value_loss(x, x, x[0])
    with pytest.raises(ValueError, match=r"clip must be .*, got nan"):
        loss_lib.clipped_value_loss(x, x, x, clip=float("nan"))
