"""A policy and a critic as the three functions that policy optimisation asks for."""

import dataclasses
from typing import Any, Literal

import jax

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Actor, Prompts, Samples, Scores
from proxlm.lm import _model, _sampling, _scoring
from proxlm.lm._config import ModelConfig

ActorParams = dict[str, Any]
"""`{"policy": ..., "critic": ...}`, each as `init` makes it; without a critic the policy alone."""


def make_actor(
    policy: ModelConfig,
    num_tokens: int,
    *,
    critic: ModelConfig | Literal[False] | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    early_exit: bool = False,
    num_microbatches: int = 1,
) -> Actor:
    """Binds configurations: what is sampled is scored under the same distribution.

    Args:
      policy: a `ModelConfig` with an LM head, and a value head if there is no critic.
      num_tokens: R, the length of the longest response.
      critic: a `ModelConfig` with a value head; None where the policy has one, or False where no
        values are wanted, as by recipes that compare the answers to one prompt.
      early_exit: stop sampling when all rows have ended, as in `sample`.
      num_microbatches: slices of the prompts, sampled one after another, as in `sample`.

    Raises:
      ValueError: neither model has a value head, the policy has no LM head, a stop token is not
        in its vocabulary, or an argument is not as above.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> actor = make_actor(config, num_tokens=5)
    >>> params = actor.init(jax.random.key(0))
    >>> prompts = Prompts(jax.numpy.zeros((2, 3), int))
    >>> samples = jax.jit(actor.sample)(jax.random.key(1), params, prompts)
    >>> jax.jit(actor.score)(params, samples).values.shape
    (2, 5)
    """
    _check(policy, num_tokens, critic, sampling, num_microbatches)
    bound = _Bound(policy, critic or None, num_tokens, sampling, early_exit, num_microbatches)
    final_values = None if critic is False else bound.final_values
    return Actor(bound.init, bound.sample, bound.score, bound.reference, bound.greedy, sampling, final_values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Bound:
    """The settings of an actor, whose functions are its methods."""

    policy: ModelConfig
    critic: ModelConfig | None
    num_tokens: int
    sampling: SamplingConfig
    early_exit: bool
    num_microbatches: int

    def init(self, key: jax.Array) -> ActorParams:
        key_policy, key_critic = jax.random.split(key)
        params: ActorParams = {"policy": _model.init(key_policy, self.policy)}
        if self.critic is not None:
            params["critic"] = _model.init(key_critic, self.critic)
        return params

    def sample(
        self,
        key: jax.Array,
        params: ActorParams,
        prompts: Prompts,
        group_size: int = 1,
        settings: SamplingConfig | None = None,
    ) -> Samples:
        return _sampling.sample(
            key,
            params["policy"],
            prompts.tokens,
            self.policy,
            self.num_tokens,
            prompt_mask=prompts.mask,
            sampling=self.sampling if settings is None else settings,
            early_exit=self.early_exit,
            num_microbatches=self.num_microbatches,
            group_size=group_size,
        )

    def greedy(self, params: ActorParams, prompts: Prompts) -> Samples:
        # the likeliest token needs no chance, so any key will do
        return self.sample(jax.random.key(0), params, prompts, 1, decoding.as_greedy(self.sampling))

    def reference(
        self,
        params: ActorParams,
        samples: Samples,
        full: bool = False,
        group_size: int = 1,
        settings: SamplingConfig | None = None,
    ) -> Scores:
        settings = decoding.untruncated(self.sampling) if settings is None else settings
        rows = self._rows(samples, self.policy, group_size)
        return _scoring.score(
            params["policy"], samples.tokens, self.policy, sampling=settings, full=full, **rows
        )

    def score(self, params: ActorParams, samples: Samples, full: bool = False, group_size: int = 1) -> Scores:
        scores = self.reference(params, samples, full, group_size, self.sampling)
        if self.critic is None:
            return scores
        rows = self._rows(samples, self.critic, group_size)
        return scores._replace(values=_scoring.values(params["critic"], samples.tokens, self.critic, **rows))

    def final_values(self, params: ActorParams, samples: Samples) -> jax.Array:
        name, config = ("policy", self.policy) if self.critic is None else ("critic", self.critic)
        return _scoring.final_values(params[name], samples.tokens, config, mask=samples.mask)

    def _rows(self, samples: Samples, config: ModelConfig, group_size: int) -> dict[str, Any]:
        size = group_size if _scoring.can_pack(config) else 1
        return {"mask": samples.mask, "start": samples.tokens.shape[1] - self.num_tokens, "group_size": size}


def _check(policy, num_tokens, critic, sampling, num_microbatches):
    """Checks the arguments; between them the two models have the heads that are needed."""
    if not isinstance(sampling, SamplingConfig):
        raise _validation.invalid("sampling", sampling, "a SamplingConfig", function="make_actor")
    _validation.to_int(1, "make_actor", num_tokens=num_tokens)
    _validation.to_int(1, "make_actor", num_microbatches=num_microbatches)
    for name, config in {"policy": policy, "critic": critic}.items():
        if not isinstance(config, ModelConfig) and not (name == "critic" and config in (None, False)):
            raise _validation.invalid(name, config, "a ModelConfig", function="make_actor")
    if not policy.lm_head:
        remedy = "A policy has an LM head: use a config with lm_head=True."
        raise _validation.invalid("policy.lm_head", False, "True", remedy, "make_actor")
    if critic is None and not policy.value_head:
        remedy = "Or give a critic, or critic=False where no values are wanted."
        raise _validation.invalid("policy.value_head", False, "True without a critic", remedy, "make_actor")
    if critic and not critic.value_head:
        remedy = "Use a config with value_head=True."
        raise _validation.invalid("critic.value_head", False, "True", remedy, "make_actor")
    decoding.check_tokens(sampling, policy.vocab_size)
