"""Checks of what an iteration is given, made before a slow reward is waited for."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.policy import protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import judging
from proxlm.policy.advantages import group

__all__ = [
    "DEFAULT_HORIZON",
    "MAX_KL_ERROR",
    "calls_python",
    "check_actor",
    "check_batch",
    "check_config",
    "check_numbers",
    "check_samples",
    "reward_function",
]

# The bound on the relative error by which the KL coefficient adapts, as in `kl.adapt`.
MAX_KL_ERROR = 0.2
DEFAULT_HORIZON = 10_000.0
# Settings of sampling by which there is but one token to draw.
_ONE_TOKEN = (("greedy", True, "False"), ("top_k", 1, "≥ 2"), ("min_p", 1, "below 1"))


@_validation.typed
def check_batch(batch: int, config: PPOConfig) -> None:
    """Raises ValueError when `batch` responses do not suit a configuration.

    >>> from proxlm.policy import ppo
    >>> check_batch(64, ppo.PPOConfig(num_minibatches=4))
    """
    if config.group_size > 1:
        group.check_groups(batch, config.group_size)
    unit = config.num_minibatches * config.num_microbatches
    unit *= config.group_size if config.whole_groups else 1
    if batch < 1:
        raise _validation.invalid("prompts", _validation.Verbatim("none"), "at least one", "", "ppo")
    if batch % unit:
        of = f" of whole groups of {config.group_size}" if config.whole_groups else ""
        raise ValueError(
            f"a batch of {batch} responses does not divide into num_minibatches="
            f"{config.num_minibatches} times num_microbatches={config.num_microbatches}{of}: "
            f"expected a multiple of {unit}"
        )
    horizon = None
    if config.kl is not None and config.kl.target is not None:
        horizon = DEFAULT_HORIZON if config.kl.horizon is None else config.kl.horizon
    if isinstance(horizon, int | float) and horizon < MAX_KL_ERROR * batch:
        raise _validation.invalid(
            "kl_horizon",
            horizon,
            f"at least {MAX_KL_ERROR * batch:g}, a fifth of the batch of {batch} responses",
            "The coefficient could lose its sign in one iteration: give a longer horizon.",
            "ppo",
        )


def check_samples(samples: protocols.Samples) -> None:
    """Raises ValueError for samples, such as those of one's own sampler, whose fields do not fit together.

    >>> from proxlm import lm
    >>> mask = jnp.ones((1, 2), bool)
    >>> check_samples(lm.Samples(mask, mask, jnp.zeros((1, 3)), mask, mask[:, 0]))
    Traceback (most recent call last):
        ...
    ValueError: learn: samples.log_probs.shape must be (1, 2), as response_mask has it, got (1, 3). ...
    """
    mask = samples.response_mask
    _validation.boolean("learn", **{"samples.response_mask": mask, "samples.ended": samples.ended})
    for field, axes in (("log_probs", 2), ("ended", 1)):
        given, expected = jnp.shape(getattr(samples, field)), mask.shape[:axes]
        if given != expected:
            raise _validation.invalid(
                f"samples.{field}.shape",
                given,
                f"{expected}, as response_mask has it",
                "policy.actors.samples_of_rows makes samples of lists.",
                "learn",
            )


def check_numbers(config: PPOConfig) -> None:
    """Raises ValueError for an array where the loss takes one number; that of a part is the part's to check.

    >>> check_numbers(PPOConfig())
    """
    coef = None if config.value is None else config.value.coef
    numbers = {"entropy_coef": config.entropy_coef, "max_kl": config.max_kl, "value_coef": coef}
    _validation.scalar("PPOConfig", **numbers)


def check_config(function: str, optimizer: optax.GradientTransformation, config: PPOConfig) -> None:
    """Raises ValueError for what is no optimizer or no configuration.

    >>> check_config("ppo.init", optax.sgd(0.1), PPOConfig)
    Traceback (most recent call last):
        ...
    ValueError: ppo.init: config must be a PPOConfig, got <class ...
    """
    _validation.an_optimizer(function, optimizer=optimizer)
    if not isinstance(config, PPOConfig):
        remedy = 'Make one, as with recipes.make("ppo").'
        raise _validation.invalid("config", config, "a PPOConfig", remedy, function)


def reward_function(function: str, reward: Any, config: PPOConfig) -> Callable[..., Any]:
    """The reward as one function; ValueError for what is none, or whose names are not those of the weights.

    >>> reward_function("ppo.make_step", 1.0, PPOConfig())
    Traceback (most recent call last):
        ...
    ValueError: ppo.make_step: reward must be a function, got 1.0.
    """
    named = reward if isinstance(reward, Mapping) and reward else {}
    several = "Several rewards are a dict of functions by name." if type(reward) in (list, tuple) else ""
    for name, fn in (named or {"reward": reward}).items():
        _validation.a_function(function, several, **{name: fn})
        if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):
            remedy = "Give `lambda samples: asyncio.run(reward(samples))`, or rewards.concurrent(reward)."
            raise _validation.invalid(name, fn, "a function, not a coroutine", remedy, function)
    if not isinstance(reward, Mapping):
        return reward
    judging.check_names(tuple(named), config, function)
    return lambda *data: {name: fn(*data) for name, fn in named.items()}


def calls_python(actor: protocols.Actor) -> bool:
    """Whether a tool in Python stands between the turns of what an actor samples.

    >>> from proxlm import lm
    >>> calls_python(lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4))
    False
    """
    return getattr(getattr(actor, "turns", None), "on_host", False)


def check_actor(actor: protocols.Actor, config: PPOConfig) -> None:
    """Raises ValueError where an actor cannot do what a configuration asks of it.

    >>> from proxlm import lm
    >>> greedy = lm.SamplingConfig(greedy=True)
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4, sampling=greedy)
    >>> check_actor(actor, PPOConfig())
    Traceback (most recent call last):
        ...
    ValueError: actor: sampling.greedy must be False while training, got True. ...
    """
    if not all(callable(getattr(actor, name, None)) for name in ("sample", "score", "reference")):
        remedy = "lm.make_actor makes one."
        raise _validation.invalid("actor", actor, "an object with sample, score and reference", remedy)
    if config.greedy_baseline and getattr(actor, "greedy", None) is None:
        raise _validation.invalid(
            "actor.greedy",
            None,
            "(params, prompts) -> samples of the likeliest tokens, for greedy_baseline=True",
            "lm.make_actor gives it; add one, or take a recipe without.",
        )
    if config.bootstrap and getattr(actor, "final_values", None) is None:
        expected = "(params, samples) -> values [B] after the last column, for bootstrap=True"
        raise _validation.invalid("actor.final_values", None, expected, "Actors with a critic have it.")
    sampling = getattr(actor, "sampling", None)
    for name, alone, expected in _ONE_TOKEN:
        given = getattr(sampling, name, None)
        if _validation.is_known(given) and given == alone:
            remedy = "Every ratio would be 1 and the policy learn nothing: sample, and be greedy to evaluate."
            raise _validation.invalid(
                f"sampling.{name}", given, f"{expected} while training", remedy, "actor"
            )
    if config.missing_eos_penalty is not None and sampling is not None and sampling.stop_token is None:
        raise _validation.invalid(
            "missing_eos_penalty",
            config.missing_eos_penalty,
            "None for an actor without a stop token",
            "No response could avoid it: give SamplingConfig(stop_token=...), or leave it out.",
            "PPOConfig",
        )
