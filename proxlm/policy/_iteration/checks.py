"""Checks of what an iteration is given, made before a slow reward is waited for."""

import inspect
from typing import Any

import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.policy import protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy.advantages import group

# The bound on the relative error by which the KL coefficient adapts, as in `kl.adapt`.
MAX_KL_ERROR = 0.2
DEFAULT_HORIZON = 10_000.0


def check_batch(batch: int, config: PPOConfig) -> None:
    """Raises ValueError when `batch` responses do not suit a configuration.

    >>> from proxlm.policy import ppo
    >>> check_batch(64, ppo.PPOConfig(num_minibatches=4))
    """
    if config.group_size > 1:
        group.check_groups(batch, config.group_size)
    unit = config.num_minibatches * config.num_microbatches
    if batch < 1 or batch % unit:
        raise ValueError(
            f"a batch of {batch} responses does not divide into num_minibatches="
            f"{config.num_minibatches} times num_microbatches={config.num_microbatches}: "
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


def check_rewards(rewards: Any, batch: int, library: Any) -> Any:
    """The rewards as an array of floats; ValueError unless they are one number per response.

    >>> check_rewards([1, 0], 2, jnp).tolist()
    [1.0, 0.0]
    """
    expected = f"one number per response, of shape ({batch},)"
    if hasattr(rewards, "__await__"):
        remedy = "Give `lambda samples: asyncio.run(reward(samples))`."
        raise _validation.invalid("reward", rewards, f"{expected}, not a coroutine", remedy)
    try:
        array = library.asarray(rewards)
        array = library.asarray(array, jnp.result_type(array, jnp.float32))
    except (TypeError, ValueError) as error:
        remedy = "Return a list of floats or an array; combine several rewards into one number."
        given = _validation.Verbatim(f"a {type(rewards).__name__}")
        raise _validation.invalid("reward", given, expected, remedy) from error
    if array.shape != (batch,):
        remedy = "A greedy baseline adds a row per prompt to those of the samples."
        given = _validation.Verbatim(f"shape {array.shape}")
        raise _validation.invalid("reward", given, expected, remedy)
    return array


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


def check_reward_function(function: str, reward: protocols.Reward) -> None:
    """Raises ValueError for a reward that is no function, or a coroutine function.

    >>> check_reward_function("ppo.make_step", 1.0)
    Traceback (most recent call last):
        ...
    ValueError: ppo.make_step: reward must be a function, got 1.0.
    """
    _validation.a_function(function, reward=reward)
    if inspect.iscoroutinefunction(reward):
        remedy = "Give `lambda samples: asyncio.run(reward(samples))`."
        raise _validation.invalid("reward", reward, "a function, not a coroutine", remedy, function)


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
    sampling = getattr(actor, "sampling", None)
    if getattr(sampling, "greedy", False):
        remedy = "Every ratio would be 1 and the policy learn nothing: sample, and be greedy to evaluate."
        raise _validation.invalid("sampling.greedy", True, "False while training", remedy, "actor")
    if config.missing_eos_penalty is not None and sampling is not None and sampling.stop_token is None:
        raise _validation.invalid(
            "missing_eos_penalty",
            config.missing_eos_penalty,
            "None for an actor without a stop token",
            "No response could avoid it: give SamplingConfig(stop_token=...), or leave it out.",
            "PPOConfig",
        )
