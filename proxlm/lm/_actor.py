"""A policy and a critic as the three functions that policy optimisation asks for."""

import dataclasses
import functools
from typing import Any, Literal

import jax

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm._decoding import turns as turns_lib
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Actor, Against, Prompts, Samples, Scores, Turns
from proxlm.lm import _adapters, _model, _rollout, _sampling, _scoring
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
    turns: Turns | None = None,
) -> Actor:
    """Binds configurations: what is sampled is scored under the same distribution.

    Args:
      policy: a `ModelConfig` with an LM head, and a value head if there is no critic.
      num_tokens: R, the length of the longest response; or of the longest turn.
      critic: a `ModelConfig` with a value head; None where the policy has one, or False where no
        values are wanted, as by recipes that compare the answers to one prompt.
      early_exit: stop sampling when all rows have ended, as in `sample`.
      num_microbatches: slices of the prompts, sampled one after another, as in `sample`.
      turns: a tool that is called after each turn, so that responses have several, as those of
        `continue_rollout`; None: one.

    Raises:
      ValueError: neither model has a value head, the policy has no LM head, a stop token is not
        in its vocabulary, or an argument is not as above.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> actor = make_actor(config, num_tokens=5)
    >>> params = jax.jit(actor.init)(jax.random.key(0))
    >>> prompts = Prompts(jax.numpy.zeros((2, 3), int))
    >>> samples = jax.jit(actor.sample)(jax.random.key(1), params, prompts)
    >>> jax.eval_shape(actor.score, params, samples).values.shape
    (2, 5)
    """
    _check(policy, num_tokens, critic, sampling, num_microbatches, turns)
    bound = _Bound(policy, critic or None, num_tokens, sampling, early_exit, num_microbatches, turns)
    final_values = None if critic is False else bound.final_values
    functions = bound.init, bound.sample, bound.score, bound.reference, bound.greedy
    return Actor(*functions, sampling, final_values, turns, bound.cast)


@dataclasses.dataclass(frozen=True, eq=False)
class _Bound:
    """The settings of an actor, whose functions are its methods."""

    policy: ModelConfig
    critic: ModelConfig | None
    num_tokens: int
    sampling: SamplingConfig
    early_exit: bool
    num_microbatches: int
    turns: Turns | None

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
        settings = self.sampling if settings is None else settings
        rows = params["policy"], prompts.tokens, prompts.mask, settings
        if self.turns is None:
            sample = functools.partial(_sampling.sample, num_microbatches=self.num_microbatches)
            return self._start(sample, key, *rows, group_size)
        start, go_on = self._turn_functions
        first = lambda key: start(key, *rows, group_size=group_size)
        more = lambda key, *so_far: go_on(key, params["policy"], *so_far, settings)
        return turns_lib.play(key, self.turns, first, more, self.num_tokens).samples

    def _start(self, sample, key, params, prompts, mask, settings, group_size):
        how = {"sampling": settings, "early_exit": self.early_exit, "group_size": group_size}
        return sample(key, params, prompts, self.policy, self.num_tokens, prompt_mask=mask, **how)

    def _go_on(self, key, params, rollout, outputs, mask, settings):
        how = {"sampling": settings, "early_exit": self.early_exit, "output_mask": mask}
        return _rollout.continue_rollout(key, params, rollout, outputs, self.policy, self.num_tokens, **how)

    @functools.cached_property
    def _turn_functions(self) -> tuple[Any, Any]:
        """The first turn and a further one; jitted by themselves where Python comes between them."""
        start = functools.partial(self._start, _rollout.start_rollout)
        if self.turns is None or not self.turns.on_host:
            return start, self._go_on
        return jax.jit(start, static_argnames="group_size"), jax.jit(self._go_on)

    def greedy(self, params: ActorParams, prompts: Prompts) -> Samples:
        # the likeliest token needs no chance, so any key will do
        return self.sample(jax.random.key(0), params, prompts, 1, decoding.as_greedy(self.sampling))

    def reference(
        self,
        params: ActorParams,
        samples: Samples,
        full: bool = False,
        group_size: int = 1,
        states: bool = False,
    ) -> Scores:
        settings = decoding.untruncated(self.sampling)
        return self._score(params, samples, group_size, settings, {"full": full, "states": states})

    def _score(self, params, samples, group_size, settings, how):
        rows = self._rows(samples, self.policy, group_size) | how | {"sampling": settings}
        rows |= {} if self.turns is None else {"response_mask": samples.response_mask}
        return _scoring.score(params["policy"], samples.tokens, self.policy, **rows)

    def score(
        self,
        params: ActorParams,
        samples: Samples,
        full: bool = False,
        group_size: int = 1,
        against: Against | None = None,
    ) -> Scores:
        if against is not None:
            against = against._replace(params=against.params["policy"])
        scores = self._score(params, samples, group_size, self.sampling, {"full": full, "against": against})
        if self.critic is None:
            return scores
        rows = self._rows(samples, self.critic, group_size)
        return scores._replace(values=_scoring.values(params["critic"], samples.tokens, self.critic, **rows))

    def final_values(self, params: ActorParams, samples: Samples) -> jax.Array:
        name, config = ("policy", self.policy) if self.critic is None else ("critic", self.critic)
        return _scoring.final_values(params[name], samples.tokens, config, mask=samples.mask)

    def cast(self, params: ActorParams) -> ActorParams:
        models = {"policy": self.policy, "critic": self.critic}
        own = {name: model for name, model in models.items() if model is not None and name in params}
        return params | {name: _adapters.cast(params[name], model) for name, model in own.items()}

    def _rows(self, samples: Samples, config: ModelConfig, group_size: int) -> dict[str, Any]:
        size = group_size if _scoring.can_pack(config) else 1
        start = samples.tokens.shape[1] - samples.response_mask.shape[1]
        return {"mask": samples.mask, "start": start, "group_size": size}


def _check(policy, num_tokens, critic, sampling, num_microbatches, turns):
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
    decoding.check_stops("make_actor", sampling, num_tokens)
    if not isinstance(turns, Turns | None):
        raise _validation.invalid("turns", turns, "Turns or None", "lm.Turns(tool, ...)", "make_actor")
    if turns is not None and num_microbatches > 1:
        remedy = "The tool is given all rows: sample fewer at a time."
        raise _validation.invalid("num_microbatches", num_microbatches, "1 with turns", remedy, "make_actor")
    longest = turns_lib.num_columns(num_tokens, turns)
    if longest >= policy.max_length:
        expected = f"fewer than the {policy.max_length} of the context, with the outputs of tools"
        remedy = "Give a config with a larger max_length, or shorter or fewer turns."
        raise _validation.invalid("the columns of a response", longest, expected, remedy, "make_actor")
