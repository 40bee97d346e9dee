"""A language of 27 sentences, where every claim about policy gradients is an identity."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.policy import kl, tabular

LANGUAGE = tabular.Language(vocab_size=3, length=3)
STOPPED = tabular.Language(vocab_size=3, length=3, stop_token=1)
LANGUAGES = {"fixed length": LANGUAGE, "stop token": STOPPED}
BETA = 0.3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=LANGUAGES.values(), ids=LANGUAGES.keys())
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


def truth(language, kl_coef=BETA):
    """The gradient of the objective at logits 0 with the reference of seed 1."""

    def objective(x):
        ref = log_probs(1, language)
        return tabular.objective(jax.nn.log_softmax(x), rewards(language), language, ref, kl_coef)

    return jax.jit(jax.grad(objective))(logits(0, language))


def divergence_gradient(language=LANGUAGE):
    fn = lambda x: tabular.divergence(jax.nn.log_softmax(x), log_probs(1, language), language)
    return jax.jit(jax.grad(fn))(logits(0, language))


def mean_gradient(estimator, language=LANGUAGE, group_size=1, reward=None):
    """The expected *descent* direction of a loss, jitted."""
    reward = rewards(language) if reward is None else reward

    def run(x):
        return tabular.expected_value_and_grad(
            estimator,
            x,
            reward,
            language,
            group_size=group_size,
            ref_log_probs=log_probs(1, language),
        )[1]

    return -jax.jit(run)(logits(0, language))


def token_sum(x, group):
    """Sum over tokens, mean over the group."""
    return jnp.sum(jnp.where(group.mask, x, 0.0)) / len(group.rewards)


def reinforce(group, advantages):
    """-A log π(y), A one number for each sequence."""
    return -token_sum(group.log_probs * jax.lax.stop_gradient(advantages)[:, None], group)


def leave_one_out(group):
    size = len(group.rewards)
    return group.rewards - (jnp.sum(group.rewards) - group.rewards) / (size - 1)


def sequence_k1(group):
    difference = jnp.where(group.mask, group.log_probs - group.ref_log_probs, 0.0)
    return jnp.sum(difference, axis=1)


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
    sums = jnp.exp(tabular.outcome_log_probs(log_probs(0, language), language)).sum()
    assert_close(sums, 1.0)


def test_a_transformer_becomes_a_table_of_the_same_language():
    config = lm.ModelConfig(3, num_layers=1, width=8, num_heads=2, init_scale=0.9)
    params = lm.init(jax.random.key(0), config)
    start = jnp.zeros((9, 1), jnp.int32)
    asked = jnp.concatenate([start, tabular.contexts(LANGUAGE)], axis=1)
    said = jax.nn.log_softmax(lm.apply(params, asked, config))
    ours = tabular.outcome_log_probs(tabular.table(said, LANGUAGE), LANGUAGE)
    tokens = jnp.concatenate([jnp.zeros((27, 1), jnp.int32), tabular.outcomes(LANGUAGE).tokens], 1)
    expected = lm.score(params, tokens, config).log_probs.sum(axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


# Exact answers


def test_the_divergence_is_the_sum_over_outcomes(language):
    ours, ref = log_probs(0, language), log_probs(1, language)
    p, q = (tabular.outcome_log_probs(x, language) for x in (ours, ref))
    assert_close(tabular.divergence(ours, ref, language), jnp.sum(jnp.exp(p) * (p - q)))
    assert tabular.divergence(ours, ours, language) == 0


def test_values_are_what_follows_on_average(language):
    ours, ref = log_probs(0, language), log_probs(1, language)
    v, q, advantages = tabular.values(ours, rewards(language), language, ref, BETA)
    p, r = (tabular.outcome_log_probs(x, language) for x in (ours, ref))
    worth = np.asarray(rewards(language) - BETA * (p - r))
    tokens, mask, states = tabular.outcomes(language)
    for s, t in {
        (s, t) for row, keep in zip(states, mask, strict=True) for t, s in enumerate(row) if keep[t]
    }:
        through = (states[:, t] == s) & mask[:, t]
        # what was paid on the way to s is past
        paid = sum((ours - ref)[states[:, i], tokens[:, i]] for i in range(t))
        left = worth + BETA * np.asarray(paid if t else np.zeros(len(tokens)))
        weights = np.exp(np.asarray(p)) * through
        assert_close(v[s], np.sum(weights * left) / weights.sum())
        for token in range(3):
            here = weights * (tokens[:, t] == token)
            assert_close(q[s, token], np.sum(here * left) / here.sum())
    assert_close(jnp.sum(jnp.exp(ours) * advantages, axis=1), jnp.zeros(13))


def test_occupancy_is_the_share_of_outcomes_that_pass(language):
    _, mask, states = tabular.outcomes(language)
    probs = jnp.exp(tabular.outcome_log_probs(log_probs(0, language), language))
    passing = np.zeros(13)
    for row, keep, p in zip(states, mask, np.asarray(probs), strict=True):
        passing[row[keep]] += p
    assert_close(tabular.occupancy(log_probs(0, language), language), passing)


def test_the_optimum_is_the_reference_tilted_by_the_reward(language):
    ref, reward = log_probs(1, language), rewards(language)
    best, value = tabular.optimum(ref, reward, BETA, language)
    tilted = tabular.outcome_log_probs(ref, language) + reward / BETA
    log_z = jax.nn.logsumexp(tilted)
    assert_close(value, BETA * log_z)
    assert_close(tabular.outcome_log_probs(best, language), tilted - log_z)
    assert_close(tabular.objective(best, reward, language, ref, BETA), value)


@pytest.mark.parametrize("seed", [0, 5])
def test_suboptimality_is_beta_times_the_divergence_from_the_optimum(language, seed):
    ref, ours, reward = log_probs(1, language), log_probs(seed, language), rewards(language)
    best, value = tabular.optimum(ref, reward, BETA, language)
    gap = value - tabular.objective(ours, reward, language, ref, BETA)
    assert gap > 0.1
    assert_close(gap, BETA * tabular.divergence(ours, best, language))


def test_a_policy_that_cannot_say_a_token_has_finite_answers_and_gradients():
    ours = log_probs(0).at[:, 2].set(-jnp.inf)
    ours = ours - jax.nn.logsumexp(ours, axis=1, keepdims=True)
    ref, reward = log_probs(1), rewards()
    gap = lambda x: tabular.objective(x, reward, LANGUAGE, ref, BETA)
    value, gradient = jax.value_and_grad(gap)(ours)
    best, top = tabular.optimum(ref, reward, BETA, LANGUAGE)
    assert_close(top - value, BETA * tabular.divergence(ours, best, LANGUAGE))
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.all(jnp.isfinite(tabular.values(ours, reward, LANGUAGE).v))


# Estimators of the gradient of the reward


def test_true_advantages_give_the_true_gradient(language):
    ref, reward = log_probs(1, language), rewards(language)
    exact = tabular.values(log_probs(0, language), reward, language, ref, BETA)

    def estimator(group):
        return -token_sum(group.log_probs * exact.advantages[group.states, group.tokens], group)

    assert_close(mean_gradient(estimator, language), truth(language))


@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_has_the_true_gradient_on_average(language, group_size):
    estimator = lambda group: reinforce(group, leave_one_out(group))
    ours = mean_gradient(estimator, language, group_size)
    assert_close(ours, truth(language, kl_coef=0.0))


@pytest.mark.parametrize("group_size", [2, 3])
def test_a_baseline_that_holds_the_reward_itself_shrinks_the_gradient(language, group_size):
    estimator = lambda group: reinforce(group, group.rewards - jnp.mean(group.rewards))
    ours = mean_gradient(estimator, language, group_size)
    share = (group_size - 1) / group_size
    assert_close(ours, share * truth(language, kl_coef=0.0))


def test_division_by_the_deviation_of_the_group_tilts_the_gradient():
    def estimator(group):
        centred = group.rewards - jnp.mean(group.rewards)
        return reinforce(group, centred / (jnp.std(group.rewards, ddof=1) + 1e-4))

    tilted = cosine(mean_gradient(estimator, group_size=2), truth(LANGUAGE, kl_coef=0.0))
    assert 0.5 < tilted < 0.999


# Where the KL is put


def test_k1_in_the_reward_has_the_gradient_of_the_divergence(language):
    estimator = lambda group: reinforce(group, sequence_k1(group))
    assert_close(mean_gradient(estimator, language), divergence_gradient(language))


def test_k1_in_the_loss_has_no_gradient(language):
    estimator = lambda group: token_sum(kl.k1(group.log_probs, group.ref_log_probs), group)
    assert_close(mean_gradient(estimator, language), jnp.zeros((13, 3)))


def full_vocabulary(group):
    return token_sum(kl.exact(group.distribution, group.ref_distribution), group)


def test_k2_in_the_loss_has_the_gradient_of_the_whole_vocabulary(language):
    estimator = lambda group: token_sum(kl.k2(group.log_probs, group.ref_log_probs), group)
    ours = mean_gradient(estimator, language)
    assert_close(ours, mean_gradient(full_vocabulary, language))
    assert jnp.linalg.norm(ours) > 0.1


def test_the_kl_in_the_loss_misses_where_the_tokens_lead():
    ours = mean_gradient(full_vocabulary)
    assert 0.5 < cosine(ours, -divergence_gradient()) < 0.9999
    # plus what each token leads to, it is the gradient of the divergence
    later = tabular.values(log_probs(0), jnp.zeros(27), LANGUAGE, log_probs(1), 1.0).v
    after = jnp.concatenate([later, jnp.zeros(27)])

    def leading(group):
        children = 1 + 3 * group.states + group.tokens
        return token_sum(group.log_probs * -after[children], group)

    assert_close(ours + mean_gradient(leading), -divergence_gradient())


def test_k3_in_the_loss_is_the_gradient_of_the_reverse_divergence_at_sampled_prefixes():
    estimator = lambda group: token_sum(kl.k3(group.log_probs, group.ref_log_probs), group)
    reverse = lambda group: token_sum(kl.exact(group.ref_distribution, group.distribution), group)
    assert_close(mean_gradient(estimator), mean_gradient(reverse))


def test_k3_in_the_reward_points_elsewhere():
    def estimator(group):
        k3 = jnp.where(group.mask, kl.k3(group.log_probs, group.ref_log_probs), 0.0)
        return reinforce(group, jnp.sum(k3, axis=1))

    assert cosine(mean_gradient(estimator), divergence_gradient()) < 0.7


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
    estimator = lambda group: reinforce(group, leave_one_out(group))
    run = functools.partial(tabular.moments, estimator, group_size=2)
    result = jax.jit(lambda x: run(x, rewards(), LANGUAGE))(logits(0))
    assert_close(-result.gradient, truth(LANGUAGE, kl_coef=0.0))
    # over ordered pairs, by the definition
    p = np.exp(np.asarray(tabular.outcome_log_probs(log_probs(0), LANGUAGE)))
    scores = jax.jit(jax.jacobian(lambda x: tabular.outcome_log_probs(jax.nn.log_softmax(x), LANGUAGE)))(
        logits(0)
    )
    scores, reward = np.asarray(scores).reshape(27, -1), np.asarray(rewards())
    total = 0.0
    for i, j in itertools.product(range(27), repeat=2):
        gradient = 0.5 * (reward[i] - reward[j]) * (scores[i] - scores[j])
        total += p[i] * p[j] * np.sum((gradient + np.asarray(result.gradient).ravel()) ** 2)
    assert_close(result.variance, total)


def test_samples_of_another_policy_are_weighed_by_it():
    old = log_probs(7)

    def estimator(group):
        rho = jnp.exp(jnp.sum(group.log_probs - group.old_log_probs, axis=1))
        return -jnp.mean(rho * group.rewards)

    run = lambda x: tabular.expected_value_and_grad(estimator, x, rewards(), LANGUAGE, old_log_probs=old)
    value, gradient = jax.jit(run)(logits(0))
    assert_close(-value, tabular.expected_reward(log_probs(0), rewards(), LANGUAGE))
    assert_close(-gradient, truth(LANGUAGE, kl_coef=0.0))


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
        tabular.expected_reward(log_probs(0), jnp.zeros(9), LANGUAGE)
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got -1.0"):
        tabular.objective(log_probs(0), rewards(), LANGUAGE, log_probs(1), -1.0)
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got 0"):
        tabular.optimum(log_probs(1), rewards(), 0, LANGUAGE)
    with pytest.raises(ValueError, match=r"x\.shape\[:2\] must be \(9, 3\), got \(9, 2\)"):
        tabular.table(jnp.zeros((9, 2, 3)), LANGUAGE)
    with pytest.raises(ValueError, match=r"group_size must be so small that 27 outcomes form .*, got 9"):
        tabular.expected_value_and_grad(lambda group: 0.0, logits(0), rewards(), LANGUAGE, group_size=9)
