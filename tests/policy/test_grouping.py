"""Answers that share their prompt: the same iteration as with answers by themselves."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import ppo, recipes
from proxlm.policy._iteration import grouping
from tests import arrays

MODEL = lm.ModelConfig(7, num_layers=1, width=8, num_heads=2, value_head=True)
ACTOR = lm.make_actor(MODEL, 4, critic=False, sampling=lm.SamplingConfig(stop_token=3))
PARAMS = {"policy": arrays.rough(MODEL, 0.5)}
GROUP = 3


def watching(seen):
    """The actor, and a note of the rows of prompts and responses that each of its calls runs."""

    def sample(key, params, prompts, group_size=1):
        seen.append(("sample", prompts.tokens.shape[0], group_size))
        return ACTOR.sample(key, params, prompts, group_size=group_size)

    def score(name, params, samples, full=False, group_size=1):
        seen.append((name, samples.tokens.shape[0], group_size))
        return getattr(ACTOR, name)(params, samples, full, group_size=group_size)

    names = {name: functools.partial(score, name) for name in ("score", "reference")}
    return ACTOR._replace(sample=sample, **names)


ALONE = ACTOR._replace(
    sample=lambda key, params, prompts: ACTOR.sample(key, params, prompts),
    score=lambda params, samples, full=False: ACTOR.score(params, samples, full),
    reference=lambda params, samples, full=False: ACTOR.reference(params, samples, full),
)


def iterate(actor, run=lambda step, *args: jax.jit(step)(*args), **overrides):
    config = recipes.make("grpo", group_size=GROUP, num_epochs=2, **overrides)
    # two prompts of different length
    tokens, mask = (
        jnp.array([[1, 2, 4]] * 2 + [[0, 5, 6]] * 2),
        jnp.array([[True] * 3] * 2 + [[False, True, True]] * 2),
    )
    prompts = lambda key: lm.Prompts(tokens, mask)
    reward = lambda samples: jnp.sum((samples.tokens[:, 3:] == 2) & samples.response_mask, axis=1) * 1.0
    optimizer = optax.sgd(0.3)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    return run(step, ppo.init(PARAMS, optimizer, config, PARAMS), jax.random.key(1))


CASES = pytest.mark.parametrize(
    "overrides",
    [{"num_minibatches": 2, "whole_groups": True}, {"num_minibatches": 1, "num_microbatches": 2}],
    ids=["whole groups", "one minibatch"],
)


@CASES
def test_an_actor_that_shares_prompts_runs_them_once_a_group(overrides):
    seen: list = []
    iterate(watching(seen), jax.eval_shape, **overrides)
    assert ("sample", 4, 3) in seen and ("score", 6, 3) in seen
    rows = 12 if overrides["num_minibatches"] == 2 else 6  # before the update, in slices or not
    assert ("reference", rows, 3) in seen and {size for _, _, size in seen} == {3}


@pytest.mark.slow
@CASES
def test_an_actor_that_shares_prompts_learns_what_another_does(overrides):
    # alone, one minibatch is shuffled row by row, which changes the order of sums
    (shared, metrics), (alone, expected) = (iterate(actor, **overrides) for actor in (ACTOR, ALONE))
    assert metrics.reward == expected.reward and metrics.first_ratio_error < 1e-5
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), shared.params, alone.params)
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), shared.params, PARAMS)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_groups_that_do_not_divide_are_scored_row_by_row():
    seen: list = []
    iterate(watching(seen), jax.eval_shape, num_minibatches=6)
    assert {("sample", 4, 3), ("score", 12, 3), ("score", 2, 1)} <= set(seen)
    with pytest.raises(
        ValueError, match="num_microbatches=1 of whole groups of 3: expected a multiple of 18"
    ):
        iterate(ACTOR, jax.eval_shape, num_minibatches=6, whole_groups=True)
    with pytest.raises(ValueError, match="whole_groups must be False with group_size=1 or num_minibatches=1"):
        recipes.make("ppo", whole_groups=True)


def casts(jaxpr, sizes, inside=False):
    """For each cast to bfloat16: whether it is of a float32 array of these sizes, in the body of a loop."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "convert_element_type" and eqn.params["new_dtype"] == jnp.bfloat16:
            x = eqn.invars[0].aval
            yield inside and x.dtype == jnp.float32 and x.size in sizes
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from casts(inner, sizes, inside or eqn.primitive.name == "scan")


@pytest.mark.parametrize("part", [False, True], ids=["whole", "last layer"])
@pytest.mark.parametrize("name", ["score", "reference"])
def test_scores_in_slices_cast_the_kernels_once(part, name):
    model = dataclasses.replace(MODEL, vocab_size=11, num_layers=2, compute_dtype="bfloat16", max_length=16)
    params = jax.eval_shape(functools.partial(lm.init, config=model), jax.random.key(0))
    sizes = {size for x in jax.tree.leaves(params) if x.ndim > 1 for size in (x.size, x.size // x.shape[0])}
    frozen = None
    if part:
        params, frozen = jax.eval_shape(lambda p: lm.trainable.split(p, lm.trainable.last_layers(1)), params)

    def run(params, frozen, tokens, mask):
        actor = lm.make_actor(model, 3)
        actor = actor if frozen is None else lm.trainable.make_actor(actor, frozen)
        samples = lm.Samples(tokens, mask, tokens * 1.0, mask[:, 4:], mask[:, 0])
        return getattr(grouping.grouped(actor, 1, slices=4), name)({"policy": params}, samples)

    program = jax.make_jaxpr(run)(params, frozen, jnp.zeros((20, 7), int), jnp.ones((20, 7), bool))
    found = list(casts(program.jaxpr, sizes))
    assert found and not any(found)
