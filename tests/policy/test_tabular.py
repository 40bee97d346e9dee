"""A language of 27 sentences, where every claim about policy gradients is an identity."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.policy import kl, tabular
from tests.policy.table_actor import compiled

LANGUAGE = tabular.Language(vocab_size=3, length=3)
STOPPED = tabular.Language(vocab_size=3, length=3, stop_token=1)
LANGUAGES = {"fixed length": LANGUAGE, "stop token": STOPPED}
BETA = 0.3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[pytest.param(LANGUAGE, marks=pytest.mark.slow), STOPPED], ids=LANGUAGES.keys())
def language(request):
    return request.param


def logits(seed, language=LANGUAGE, scale=0.8):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.normal(size=(language.num_states, language.vocab_size)))


def log_probs(seed, language=LANGUAGE):
    return jax.nn.log_softmax(logits(seed, language))


def rewards(language=LANGUAGE):
    size = len(tabular.outcomes(language).tokens)
    return jnp.asarray(np.random.default_rng(99).normal(size=size))


@functools.cache
def exact(language):
    """All exact answers about the policy of seed 0, the reference of seed 1 and another policy of seed 5."""

    def answers(x, ref, other, reward):
        goal = lambda x, coef: tabular.objective(jax.nn.log_softmax(x), reward, language, ref, coef)
        apart = lambda x: tabular.divergence(jax.nn.log_softmax(x), ref, language)
        ours = jax.nn.log_softmax(x)
        best, value = tabular.optimum(ref, reward, BETA, language)
        objective = lambda policy: tabular.objective(policy, reward, language, ref, BETA)
        return {
            "ours": tabular.outcome_log_probs(ours, language),
            "ref": tabular.outcome_log_probs(ref, language),
            "best": tabular.outcome_log_probs(best, language),
            "optimum": value,
            "objectives": [objective(policy) for policy in (best, ours, other)],
            "divergences": [tabular.divergence(policy, best, language) for policy in (ours, other)],
            "divergence": apart(x),
            "divergence from itself": tabular.divergence(ours, ours, language),
            "values": tabular.values(ours, reward, language, ref, BETA),
            "penalties to come": tabular.values(ours, jnp.zeros_like(reward), language, ref, 1.0).v,
            "occupancy": tabular.occupancy(ours, language),
            "expected reward": tabular.expected_reward(ours, reward, language),
            "gradient": jax.grad(goal)(x, BETA),
            "gradient of the reward": jax.grad(goal)(x, 0.0),
            "gradient of the divergence": jax.grad(apart)(x),
        }

    policies = (log_probs(seed, language) for seed in (1, 5))
    return compiled(answers)(logits(0, language), *policies, rewards(language))


def token_sum(x, group):
    """Sum over tokens, mean over the group."""
    return jnp.sum(jnp.where(group.mask, x, 0.0)) / len(group.rewards)


def reinforce(group, advantages):
    """-A log π(y), A one number for each sequence."""
    return -token_sum(group.log_probs * jax.lax.stop_gradient(advantages)[:, None], group)


def leave_one_out(group):
    size = len(group.rewards)
    return group.rewards - (jnp.sum(group.rewards) - group.rewards) / (size - 1)


def sequence_sum(x, group):
    return jnp.sum(jnp.where(group.mask, x, 0.0), axis=1)


def normalised(group):
    centred = group.rewards - jnp.mean(group.rewards)
    return reinforce(group, centred / (jnp.std(group.rewards, ddof=1) + 1e-4))


def of_kl(estimate):
    """An estimate of the KL to the reference, in the loss."""
    return lambda group: token_sum(estimate(group.log_probs, group.ref_log_probs), group)


def of_kl_in_reward(estimate):
    return lambda g: reinforce(g, sequence_sum(estimate(g.log_probs, g.ref_log_probs), g))


ESTIMATORS = {
    "k1": of_kl(kl.k1),
    "k2": of_kl(kl.k2),
    "k3": of_kl(kl.k3),
    "k1 in the reward": of_kl_in_reward(kl.k1),
    "k3 in the reward": of_kl_in_reward(kl.k3),
    "whole vocabulary": lambda g: token_sum(kl.exact(g.distribution, g.ref_distribution), g),
    "whole vocabulary, reversed": lambda g: token_sum(kl.exact(g.ref_distribution, g.distribution), g),
}
GROUPED = {
    "leave one out": lambda group: reinforce(group, leave_one_out(group)),
    "centred": lambda group: reinforce(group, group.rewards - jnp.mean(group.rewards)),
    "normalised": normalised,
}


@functools.cache
def mean_gradients(language):
    """The expected *descent* direction of every estimator, {(name, group size): gradient}."""
    advantages = exact(language)["values"].advantages
    after = jnp.concatenate([exact(language)["penalties to come"], jnp.zeros(27)])
    known = {
        "true advantages": lambda g: -token_sum(g.log_probs * advantages[g.states, g.tokens], g),
        "penalties to come": lambda g: token_sum(g.log_probs * -after[1 + 3 * g.states + g.tokens], g),
    }
    ref, reward = log_probs(1, language), rewards(language)

    def mean(estimator, x, group_size):
        options = {"group_size": group_size, "ref_log_probs": ref}
        return -tabular.expected_value_and_grad(estimator, x, reward, language, **options)[1]

    def everything(x):
        single = {(name, 1): mean(fn, x, 1) for name, fn in (ESTIMATORS | known).items()}
        return single | {(name, size): mean(fn, x, size) for name, fn in GROUPED.items() for size in (2, 3)}

    return compiled(everything)(logits(0, language))


def cosine(a, b):
    return jnp.sum(a * b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-10, rtol=0)


# The language itself


def test_outcomes_are_every_sequence_up_to_its_stop_token():
    for language in (LANGUAGE, STOPPED):
        said = set()
        for sequence in itertools.product(range(3), repeat=3):
            stops = sequence.index(1) + 1 if language.stop_token and 1 in sequence else 3
            said.add(sequence[:stops])
        tokens, mask, _ = tabular.outcomes(language)
        rows = [tuple(int(v) for v in row[keep]) for row, keep in zip(tokens, mask, strict=True)]
        assert len(rows) == len(said) and set(rows) == said


def test_states_number_the_prefixes_shortest_first():
    prefixes = [p for t in range(3) for p in itertools.product(range(3), repeat=t)]
    for row, states in zip(*tabular.outcomes(LANGUAGE)[::2], strict=True):
        assert [prefixes[s] for s in states] == [tuple(row[:t].tolist()) for t in range(3)]


def test_probabilities_of_the_outcomes_sum_to_one(language):
    assert_close(np.exp(exact(language)["ours"]).sum(), 1.0)


def test_a_transformer_becomes_a_table_of_the_same_language():
    config = lm.ModelConfig(3, num_layers=1, width=8, num_heads=2, init_scale=0.9)
    start = jnp.zeros((9, 1), jnp.int32)
    asked = jnp.concatenate([start, tabular.contexts(LANGUAGE)], axis=1)
    tokens = jnp.concatenate([jnp.zeros((27, 1), jnp.int32), tabular.outcomes(LANGUAGE).tokens], 1)

    @compiled
    def both(key):
        params = lm.init(key, config)
        answers = jax.nn.log_softmax(lm.apply(params, asked, config))
        ours = tabular.outcome_log_probs(tabular.table(answers, LANGUAGE), LANGUAGE)
        return ours, lm.score(params, tokens, config).log_probs.sum(axis=1)

    np.testing.assert_allclose(*both(jax.random.key(0)), atol=1e-5)


# Exact answers


def test_the_divergence_is_the_sum_over_outcomes(language):
    facts = exact(language)
    assert_close(facts["divergence"], np.sum(np.exp(facts["ours"]) * (facts["ours"] - facts["ref"])))
    assert facts["divergence from itself"] == 0


def test_values_are_what_follows_on_average(language):
    facts, difference = exact(language), log_probs(0, language) - log_probs(1, language)
    v, q, advantages = facts["values"]
    p, difference = np.asarray(facts["ours"]), np.asarray(difference)
    worth = np.asarray(rewards(language)) - BETA * (p - facts["ref"])
    tokens, mask, states = tabular.outcomes(language)
    for s, t in {
        (s, t) for row, keep in zip(states, mask, strict=True) for t, s in enumerate(row) if keep[t]
    }:
        through = (states[:, t] == s) & mask[:, t]
        # what was paid on the way to s is past
        paid = sum((difference[states[:, i], tokens[:, i]] for i in range(t)), np.zeros(len(tokens)))
        left = worth + BETA * paid
        weights = np.exp(p) * through
        assert_close(v[s], np.sum(weights * left) / weights.sum())
        for token in range(3):
            here = weights * (tokens[:, t] == token)
            assert_close(q[s, token], np.sum(here * left) / here.sum())
    assert_close(np.sum(np.exp(log_probs(0, language)) * advantages, axis=1), np.zeros(13))


def test_occupancy_is_the_share_of_outcomes_that_pass(language):
    _, mask, states = tabular.outcomes(language)
    passing = np.zeros(13)
    for row, keep, p in zip(states, mask, np.exp(exact(language)["ours"]), strict=True):
        passing[row[keep]] += p
    assert_close(exact(language)["occupancy"], passing)


def test_the_optimum_is_the_reference_tilted_by_the_reward(language):
    facts = exact(language)
    tilted = np.asarray(facts["ref"]) + np.asarray(rewards(language)) / BETA
    log_z = np.log(np.sum(np.exp(tilted)))
    assert_close(facts["optimum"], BETA * log_z)
    assert_close(facts["best"], tilted - log_z)
    assert_close(facts["objectives"][0], facts["optimum"])


def test_suboptimality_is_beta_times_the_divergence_from_the_optimum(language):
    facts = exact(language)
    for objective, divergence in zip(facts["objectives"][1:], facts["divergences"], strict=True):
        gap = facts["optimum"] - objective
        assert gap > 0.1
        assert_close(gap, BETA * divergence)


def test_a_policy_that_cannot_say_a_token_has_finite_answers_and_gradients():
    ours = np.exp(log_probs(0)) * [1.0, 1.0, 0.0]
    with np.errstate(divide="ignore"):
        ours = np.log(ours / ours.sum(axis=1, keepdims=True))

    @compiled
    def answers(ours, ref, reward):
        goal = lambda x: tabular.objective(x, reward, LANGUAGE, ref, BETA)
        best, top = tabular.optimum(ref, reward, BETA, LANGUAGE)
        gap = BETA * tabular.divergence(ours, best, LANGUAGE)
        return top, gap, jax.value_and_grad(goal)(ours), tabular.values(ours, reward, LANGUAGE).v

    top, gap, (value, gradient), v = answers(ours, log_probs(1), rewards())
    assert_close(top - value, gap)
    assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(v))


# Estimators of the gradient of the reward


def test_true_advantages_give_the_true_gradient(language):
    assert_close(mean_gradients(language)["true advantages", 1], exact(language)["gradient"])


@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_has_the_true_gradient_on_average(language, group_size):
    ours = mean_gradients(language)["leave one out", group_size]
    assert_close(ours, exact(language)["gradient of the reward"])


@pytest.mark.parametrize("group_size", [2, 3])
def test_a_baseline_that_holds_the_reward_itself_shrinks_the_gradient(language, group_size):
    share = (group_size - 1) / group_size
    ours = mean_gradients(language)["centred", group_size]
    assert_close(ours, share * exact(language)["gradient of the reward"])


def test_division_by_the_deviation_of_the_group_tilts_the_gradient(language):
    ours, true = mean_gradients(language)["normalised", 2], exact(language)["gradient of the reward"]
    assert 0.5 < cosine(ours, true) < 0.999


# Where the KL is put


def test_k1_in_the_reward_has_the_gradient_of_the_divergence(language):
    ours = mean_gradients(language)["k1 in the reward", 1]
    assert_close(ours, exact(language)["gradient of the divergence"])


def test_k1_in_the_loss_has_no_gradient(language):
    assert_close(mean_gradients(language)["k1", 1], jnp.zeros((13, 3)))


def test_k2_in_the_loss_has_the_gradient_of_the_whole_vocabulary(language):
    ours = mean_gradients(language)["k2", 1]
    assert_close(ours, mean_gradients(language)["whole vocabulary", 1])
    assert np.linalg.norm(ours) > 0.1


def test_the_kl_in_the_loss_misses_where_the_tokens_lead(language):
    ours, whole = mean_gradients(language), exact(language)["gradient of the divergence"]
    assert 0.5 < cosine(ours["whole vocabulary", 1], -whole) < 0.9999
    # plus what each token leads to, it is the gradient of the divergence
    assert_close(ours["whole vocabulary", 1] + ours["penalties to come", 1], -whole)


def test_k3_in_the_loss_is_the_gradient_of_the_reverse_divergence_at_sampled_prefixes(language):
    ours = mean_gradients(language)
    assert_close(ours["k3", 1], ours["whole vocabulary, reversed", 1])


def test_k3_in_the_reward_points_elsewhere(language):
    ours = mean_gradients(language)["k3 in the reward", 1]
    assert cosine(ours, exact(language)["gradient of the divergence"]) < 0.9


# The sums themselves


def test_groups_are_all_tuples_counted_once():
    members, counts = tabular.estimators.groups(STOPPED, 3)
    size = len(tabular.outcomes(STOPPED).tokens)
    tuples = itertools.product(range(size), repeat=3)
    expected = {}
    for row in tuples:
        expected[tuple(sorted(row))] = expected.get(tuple(sorted(row)), 0) + 1
    rows = (tuple(row) for row in members.tolist())
    assert dict(zip(rows, counts.tolist(), strict=True)) == expected


def test_variance_is_that_of_drawn_groups():
    run = functools.partial(tabular.moments, GROUPED["leave one out"], group_size=2)
    reward = rewards(STOPPED)
    result = compiled(lambda x: run(x, reward, STOPPED))(logits(0))
    assert_close(-result.gradient, exact(STOPPED)["gradient of the reward"])
    # over ordered pairs, by the definition
    p = np.exp(exact(STOPPED)["ours"])
    each = lambda x: tabular.outcome_log_probs(jax.nn.log_softmax(x), STOPPED)
    scores = np.asarray(compiled(jax.jacobian(each))(logits(0))).reshape(len(p), -1)
    reward = np.asarray(reward)
    total = 0.0
    for i, j in itertools.product(range(len(p)), repeat=2):
        gradient = 0.5 * (reward[i] - reward[j]) * (scores[i] - scores[j])
        total += p[i] * p[j] * np.sum((gradient + np.asarray(result.gradient).ravel()) ** 2)
    assert_close(result.variance, total)


def test_samples_of_another_policy_are_weighed_by_it():
    old = log_probs(7)

    def estimator(group):
        rho = jnp.exp(sequence_sum(group.log_probs - group.old_log_probs, group))
        return -jnp.mean(rho * group.rewards)

    reward = rewards(STOPPED)
    run = lambda x: tabular.expected_value_and_grad(estimator, x, reward, STOPPED, old_log_probs=old)
    value, gradient = compiled(run)(logits(0))
    assert_close(-value, exact(STOPPED)["expected reward"])
    assert_close(-gradient, exact(STOPPED)["gradient of the reward"])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"vocab_size \*\* length must be at most 65536, got 262144"):
        tabular.Language(vocab_size=8, length=6)
    with pytest.raises(ValueError, match=r"length must be .*, got 0"):
        tabular.Language(vocab_size=3, length=0)
    with pytest.raises(ValueError, match=r"stop_token must be .*, got 3"):
        tabular.Language(vocab_size=3, length=3, stop_token=3)
    with pytest.raises(ValueError, match=r"log_probs\.shape must be .*, got \(13, 2\)"):
        tabular.occupancy(log_probs(0)[:, :2], LANGUAGE)
    with pytest.raises(ValueError, match=r"rewards\.shape must be .*, got \(9,\)"):
        tabular.expected_reward(log_probs(0), np.zeros(9, np.float32), LANGUAGE)
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got -1.0"):
        tabular.objective(log_probs(0), rewards(), LANGUAGE, log_probs(1), -1.0)
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got 0"):
        tabular.optimum(log_probs(1), rewards(), 0, LANGUAGE)
    with pytest.raises(ValueError, match=r"x\.shape\[:2\] must be \(9, 3\), got \(9, 2\)"):
        tabular.table(np.zeros((9, 2, 3), np.float32), LANGUAGE)
    with pytest.raises(ValueError, match=r"group_size must be so small that 27 outcomes form .*, got 9"):
        tabular.expected_value_and_grad(lambda group: 0.0, logits(0), rewards(), LANGUAGE, group_size=9)
