"""A policy and a critic as the three functions that policy optimisation asks for."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from proxlm.lm import _distribution, _model, _sampling, _scoring
from proxlm.lm._distribution import SamplingConfig


class Prompts(NamedTuple):
    """What to continue: tokens, integers `[B, P]`, and mask, bool `[B, P]` or None."""

    tokens: jax.Array
    mask: jax.Array | None = None


class Actor(NamedTuple):
    """Pure functions of `{"policy": ..., "critic": ...}`; without a critic the policy has a head.

    Attributes:
      init: `(key) -> params`.
      sample: `(key, params, Prompts) -> Samples`.
      score: `(params, Samples, full=False) -> Scores`, of the responses, values included.
      reference: `(params, Samples, full=False) -> Scores`, of the policy alone, no values, under the
        distribution without truncation: what a truncated policy cannot say has no place in its KL.
      greedy: `(params, Prompts) -> Samples` of the likeliest tokens, or None: a baseline.
      sampling: the settings of sampling, or None where they are not known.
    """

    init: Callable
    sample: Callable
    score: Callable
    reference: Callable
    greedy: Callable | None = None
    sampling: SamplingConfig | None = None


def make_actor(
    policy,
    num_tokens,
    *,
    critic=None,
    sampling=SamplingConfig(),
    early_exit=False,
):
    """Binds configurations: what is sampled is scored under the same distribution.

    Args:
      policy: a `ModelConfig` with an LM head, and a value head if there is no critic.
      num_tokens: R, the length of the longest response.
      critic: a `ModelConfig` with a value head; None where the policy has one, or False where no
        values are wanted, as by recipes that compare the answers to one prompt.
      sampling: a `SamplingConfig`, for sampling and for scoring.
      early_exit: as in `sample`.

    Returns:
      An `Actor`.

    Raises:
      ValueError: neither model has a value head, the policy has no LM head, or the stop token is
        not in its vocabulary.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> actor = make_actor(config, num_tokens=5)
    >>> params = actor.init(jax.random.key(0))
    >>> prompts = Prompts(jax.numpy.zeros((2, 3), int))
    >>> samples = actor.sample(jax.random.key(1), params, prompts)
    >>> actor.score(params, samples).values.shape
    (2, 5)
    """
    _check(policy, critic)
    _distribution.check_stop_token(sampling, policy.vocab_size)

    critic = critic or None
    untruncated = dataclasses.replace(sampling, greedy=False, top_k=None, top_p=None, min_p=None)

    def init(key):
        key_policy, key_critic = jax.random.split(key)
        params = {"policy": _model.init(key_policy, policy)}
        if critic is not None:
            params["critic"] = _model.init(key_critic, critic)
        return params

    def sample(key, params, prompts, settings=sampling):
        return _sampling.sample(
            key,
            params["policy"],
            prompts.tokens,
            policy,
            num_tokens,
            prompt_mask=prompts.mask,
            sampling=settings,
            early_exit=early_exit,
        )

    def greedy(params, prompts):
        # the likeliest token needs no chance, so any key will do
        settings = dataclasses.replace(sampling, greedy=True)
        return sample(jax.random.key(0), params, prompts, settings)

    def reference(params, samples, full=False, settings=untruncated):
        start = samples.tokens.shape[1] - num_tokens
        return _scoring.score(
            params["policy"],
            samples.tokens,
            policy,
            mask=samples.mask,
            start=start,
            sampling=settings,
            full=full,
        )

    def score(params, samples, full=False):
        scores = reference(params, samples, full, sampling)
        if critic is None:
            return scores
        start = samples.tokens.shape[1] - num_tokens
        tree = params["critic"]
        return scores._replace(
            values=_scoring.values(tree, samples.tokens, critic, mask=samples.mask, start=start)
        )

    return Actor(init, sample, score, reference, greedy, sampling)


def _check(policy, critic):
    """Checks that between them the two models have the heads that are needed."""
    if not policy.lm_head:
        raise ValueError("policy has no LM head: use a config with lm_head=True")
    if critic is False:
        return
    if critic is None and not policy.value_head:
        raise ValueError(
            "no value head: give a critic, or a policy config with value_head=True for a shared one"
        )
    if critic is not None and not critic.value_head:
        raise ValueError("critic has no value head: use a config with value_head=True")
