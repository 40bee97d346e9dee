"""Every public function of tokens, sequences and groups: finite at the edges, blind to what is masked."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from proxlm.policy import advantages, aggregation, diagnostics, filters, importance_weights, kl, losses

part = functools.partial
# what every function is asked about: [B, T] arrays of nats or rewards, and a mask
SHAPES = [(1, 1), (1, 4), (3, 1), (4, 5)]


def of_groups(fn, **settings):
    """A function of one group, on all rows of a batch as one group of at least two."""

    def run(x, y, mask):
        rewards, valid = jnp.sum(jnp.where(mask, x, 0.0), axis=1), jnp.any(mask, axis=1)
        if rewards.size < 2:
            rewards, valid = jnp.repeat(rewards, 2), jnp.repeat(valid, 2)
        return fn(rewards, valid, **settings)

    return run


def of_batches(fn, **settings):
    """A recipe's advantages, of groups of two."""

    def run(x, y, mask):
        twice = lambda z: jnp.repeat(z, 2, axis=0)
        return [z for z in fn(twice(x), twice(y), twice(mask), 2, **settings) if z is not None]

    return run


def of_tokens(fn, **settings):
    return lambda x, y, mask: fn(x, mask, **settings)


def of_rows(fn):
    return lambda x, y, mask: jax.vmap(fn)(x, y, mask)


def of_answers(loss):
    """A loss of pairs, of the log-probs of whole responses and another one's."""

    def run(x, y, mask):
        of = part(losses.sequence_log_probs, mask=mask)
        return loss(of(x), of(y))

    return run


LOSSES = {
    name: part(getattr(losses, name), **settings)
    for name, settings in {
        "clipped": {"dual_clip": 3.0},
        "cispo": {},
        "sapo": {},
        "policy_gradient": {},
        "kl_penalty": {"direction": "reverse", "max_log_ratio": 88.0},
        "dro": {},
        "geometric_mean": {},
        "vespo": {},
        "topr": {},
        "clip_cov": {},
        "kl_cov": {},
        "dppo": {"divergence": "kl"},
    }.items()
}
FUNCTIONS = {
    name: lambda x, y, mask, loss=loss: loss(x, y, jnp.tanh(x - y), mask) for name, loss in LOSSES.items()
}
FUNCTIONS |= {
    f"clipped {level}": lambda x, y, mask, level=level: losses.clipped(x, y, y, mask, level=level)
    for level in ("sequence", "sequence_token", "product", "product_token")
}
FUNCTIONS |= {
    "log_ratio": losses.log_ratio,
    "sft": of_tokens(losses.sft),
    "completion_mask": lambda x, y, mask: losses.completion_mask(mask, jnp.ones(mask.shape[0], int)),
    "bradley_terry": of_answers(part(losses.bradley_terry, centre_coef=0.1)),
    "dpo": of_answers(lambda a, b: losses.dpo(a, b, -1.0, -1.0, label_smoothing=0.1)),
    "ipo": of_answers(lambda a, b: losses.ipo(a, b, -1.0, -1.0)),
    "kto": of_answers(lambda a, b: losses.kto(a, b > 0, b)),
    "orpo": of_answers(losses.orpo),
    "simpo": of_answers(losses.simpo),
    "f_score": of_answers(lambda a, b: losses.f_score(a, "forward_kl") + losses.f_score(b, "js")),
    "truncated": importance_weights.truncated,
    "icepop": importance_weights.icepop,
    "sequence_mask": importance_weights.sequence_mask,
    "normalised": importance_weights.normalised,
    "off_policy_sequence_mask": lambda x, y, m: importance_weights.off_policy_sequence_mask(x, y, y, m, 0.1),
    "centred": of_groups(advantages.centred),
    "group_relative": of_groups(advantages.group_relative),
    "leave_one_out": of_groups(advantages.leave_one_out),
    "best_minus_second": of_groups(advantages.best_minus_second),
    "pass_at_k": of_groups(advantages.pass_at_k, k=2),
    "reward_varies": of_groups(filters.reward_varies),
    "gae": of_rows(advantages.gae),
    "decoupled_gae": of_rows(advantages.decoupled_gae),
    "reward_to_go": of_rows(lambda x, y, mask: advantages.reward_to_go(x, mask)),
    "place_score": of_rows(lambda x, y, mask: advantages.place_score(0.7, mask, place="after")),
    "shape_rewards": of_rows(lambda x, y, mask: advantages.shape_rewards(0.7, x, mask, 0.1)),
    "adaptive_lambda": lambda x, y, mask: advantages.adaptive_lambda(mask),
    "optimal_token": lambda x, y, mask: advantages.optimal_token(
        *(jnp.concatenate([z, z]) for z in (x, jnp.abs(y), mask))
    ),
    "whiten": of_tokens(advantages.whiten, ddof=1),
    "masked_var": of_tokens(aggregation.masked_var),
    "high_entropy_mask": of_tokens(filters.high_entropy_mask),
    "policy_diagnostics": lambda x, y, mask: diagnostics.policy_diagnostics(x, y, x, mask),
    "explained_variance": diagnostics.explained_variance,
}
FUNCTIONS |= {
    f"kl_rejection_mask {over}": part(importance_weights.kl_rejection_mask, high=0.1, over=over)
    for over in ("token", "mean", "max")
}
FUNCTIONS |= {
    name: of_batches(getattr(advantages, name)) for name in advantages.__all__ if name.endswith("_advantages")
}
FUNCTIONS |= {
    f"{kind} weights": lambda x, y, mask, kind=kind: aggregation.weights(mask, kind)
    for kind in aggregation.WEIGHTS
}
FUNCTIONS |= {
    f"pair_loss {kind}": of_answers(
        part(losses.pair_loss, kind=kind, label_smoothing=0.1 * (kind in ("robust", "exo")))
    )
    for kind in losses.preference_variants.PAIR_LOSSES
}
FUNCTIONS |= {
    f"kl {kind}": lambda x, y, mask, kind=kind: kl.ESTIMATORS[kind](
        aggregation.select(x, mask), aggregation.select(y, mask)
    )
    for kind in kl.ESTIMATORS
}


@functools.cache
def program(shape):
    """Values of all functions, and the gradients of their sums where there is something to differentiate."""

    def one(fn, x, y, mask):
        def total(x, y):
            values = jax.tree.map(lambda z: jnp.asarray(z, jnp.float32), fn(x, y, mask))
            return sum(map(jnp.sum, jax.tree.leaves(values)), jnp.zeros(())), values

        if x.size == 0:
            return jax.tree.leaves(total(x, y)[1])
        gradients, values = jax.grad(total, (0, 1), has_aux=True)(x, y)
        return jax.tree.leaves((values, gradients))

    return jax.jit(lambda x, y, mask: {name: one(fn, x, y, mask) for name, fn in FUNCTIONS.items()})


def check(x, y, mask):
    """Finite values and gradients, whatever masked slots hold."""
    run = program(x.shape)
    clean = run(*(jnp.where(mask, z, 0.0) for z in (x, y)), mask)
    dirty = run(*(jnp.where(mask, z, jnp.nan) for z in (x, y)), mask)
    for name in FUNCTIONS:
        for a, b in zip(clean[name], dirty[name], strict=True):
            assert np.all(np.isfinite(a)), name
            np.testing.assert_array_equal(a, b, err_msg=name)


def numbers(seed, shape, scale):
    rng = np.random.default_rng(seed)
    return (np.float32(scale * rng.normal(size=shape)) for _ in range(2))


@pytest.mark.parametrize("shape", [(4, 5), *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[:3])])
@pytest.mark.parametrize("valid", ["none", "all", "one"])
def test_masks_of_nothing_everything_and_one_token(shape, valid):
    mask = np.full(shape, valid == "all")
    mask[0, 0] |= valid == "one"
    check(*numbers(0, shape, 1.0), mask)


@pytest.mark.slow
@hypothesis.settings(max_examples=200)
@hypothesis.given(strategies.data())
def test_any_mask_and_any_scale(data):
    shape = data.draw(strategies.sampled_from(SHAPES))
    bits = data.draw(strategies.lists(strategies.booleans(), min_size=20, max_size=20))
    scale = data.draw(strategies.sampled_from([0.0, 1e-20, 1e-3, 1.0, 30.0, 90.0, 1e4]))
    mask = np.array(bits[: np.prod(shape)]).reshape(shape)
    check(*numbers(data.draw(strategies.integers(0, 99)), shape, scale), mask)


def test_sequences_without_tokens():
    check(*numbers(0, (2, 0), 1.0), np.zeros((2, 0), bool))
