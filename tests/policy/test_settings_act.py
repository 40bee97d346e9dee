"""No setting is ignored: every override of every recipe changes what is learnt, or is refused."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.interpreters import partial_eval

from proxlm import lm
from proxlm.policy import advantages, filters, importance_weights, losses, partial, ppo, recipes
from tests.policy import table_actor

VOCAB, LENGTH, BATCH = 3, 2, 8
ACTOR = table_actor.make(VOCAB, LENGTH, stop_token=0)
PARAMS = table_actor.params(0, VOCAB, LENGTH)
SGD = optax.sgd(1.0)


def by_length(lengths, longest):
    return 0.1 * lengths


# Another value for every setting that is not a number.
OTHER = {
    "advantage": partial(advantages.reward_to_go_advantages),
    "aggregation": "constant",
    "baseline": partial(advantages.best_minus_second),
    "correction": partial(importance_weights.icepop),
    "ddof": 0,
    "direction": "reverse",
    "divergence": "kl",
    "dual_clip": 3.0,
    "epsilon_inside": True,
    "greedy_baseline": True,
    "group_filter": partial(filters.ended_only),
    "group_size": 2,
    "holes": "zero",
    "k": 1,
    "key": jax.random.key(0),
    "kl": ppo.KL(estimator="k2", placement="loss"),
    "kl_estimator": "abs",
    "kl_placement": "loss",
    "kl_target": 1.0,
    "length_penalty": partial(by_length),
    "level": "product",
    "loss": partial(losses.dro),
    "max_kl": 0.1,
    "missing_eos_penalty": 1.0,
    "num_epochs": 3,
    "num_microbatches": 2,
    "num_minibatches": 2,
    "value": None,
    "whitening": ppo.Whitening(advantages=False, rewards=True),
    "whitening_ddof": 2,
    "whitening_rewards": True,
}
NAMES = sorted({name for recipe in recipes.RECIPES.values() for name in recipe.config.settings})
EVERY = [pytest.param(name, marks=[] if name == "ppo" else pytest.mark.slow) for name in recipes.RECIPES]


def small(name, **overrides):
    size = {"group_size": 4} if recipes.RECIPES[name].config.group_size > 1 else {}
    return recipes.make(name, **size | {"num_epochs": 1, "num_minibatches": 1} | overrides)


def learnt(config):
    """The program that makes the next state of a configuration's numbers, and which of them it reads."""
    leaves, structure = jax.tree.flatten(config)

    def iteration(leaves, key):
        config = jax.tree.unflatten(structure, leaves)
        prompts = lambda key: lm.Prompts(jnp.zeros((BATCH // config.group_size, 1), jnp.int32))
        reward = lambda samples: jnp.sum(samples.tokens, axis=1) - 1.5
        step = ppo.make_step(ACTOR, reward, prompts, SGD, config)
        return step(ppo.init(PARAMS, SGD, config), key)[0]

    traced = jax.make_jaxpr(iteration)(leaves, jax.random.key(1)).jaxpr
    program, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return re.sub("0x[0-9a-f]+", "", str(program)), used[: len(leaves)]


@pytest.mark.parametrize("name", EVERY)
def test_every_number_of_a_recipe_is_read(name):
    config = small(name)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(config)]
    _, used = learnt(config)
    assert [path for path, read in zip(paths, used, strict=True) if not read] == []


@pytest.mark.parametrize("name", EVERY)
def test_every_other_setting_of_a_recipe_changes_the_program_or_is_refused(name):
    program, _ = learnt(small(name))
    ignored, refused = [], []
    for setting in NAMES:
        value = OTHER.get(setting, 0.37)
        try:
            changed = small(name, **{setting: value})
        except ValueError:
            refused.append(setting)
            continue
        if jax.tree.structure(changed) == jax.tree.structure(small(name)):
            continue  # a number: see above
        if learnt(changed)[0] == program:
            ignored.append(setting)
    assert ignored == []
    assert len(refused) < len(NAMES) - 10


def test_a_setting_that_the_iteration_does_not_read_would_be_seen():
    def deaf(log_probs, old_log_probs, advantages, mask, bound=0.2, level="token"):
        return losses.policy_gradient(log_probs, old_log_probs, advantages, mask)

    config = small("ppo", loss=partial(deaf))
    program, used = learnt(config)
    assert not all(used)
    assert learnt(config.replace(level="word"))[0] == program
