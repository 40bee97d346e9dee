"""The state of policy optimisation, and the two halves of an iteration around the reward."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from proxlm import _validation, sharding
from proxlm.policy import protocols
from proxlm.policy._configuration.config import PPOConfig, check_parts
from proxlm.policy._configuration.partials import partial
from proxlm.policy._configuration.settings import plain
from proxlm.policy._iteration import checks, experience, grouping, judging, metrics, update
from proxlm.policy._iteration import prompts as prompts_lib
from proxlm.policy._iteration.metrics import Metrics

__all__ = ["PPOState", "init", "make_collect_and_learn"]


class PPOState(NamedTuple):
    """Everything an iteration changes, and the reference, which it does not.

    Attributes:
      params: what the optimizer moves: the policy's and the critic's.
      opt_state: the optimizer's.
      ref_params: the reference policy's, in the structure of params (a critic is not needed), or a
        `Partial` of the policy's params that gives them; None without a KL.
      kl_coef: β, scalar.
      iteration: how many have been done, scalar.
    """

    params: Any
    opt_state: optax.OptState
    ref_params: Any
    kl_coef: jax.Array
    iteration: jax.Array


def init(
    params: optax.Params,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    ref_params: optax.Params | Callable[[optax.Params], optax.Params] | None = None,
) -> PPOState:
    """The state before the first iteration.

    Args:
      params: of `Actor.init`, or with pretrained parts put in.
      ref_params: the reference; None takes a copy of params, so that the state can be donated, and
        keeps none where the KL's coefficient is a plain 0. A function of the policy's params spares
        the copy: one that switches LoRA factors off, or takes a delta away.

    Raises:
      ValueError: if an argument is invalid.

    >>> import optax
    >>> init({"policy": jnp.ones(2)}, optax.sgd(0.1), PPOConfig()).kl_coef.item()
    0.05000000074505806
    """
    checks.check_config("ppo.init", optimizer, config)
    if config.kl is None and ref_params is not None:
        remedy = "Give the config a KL."
        raise _validation.invalid("ref_params", type(ref_params), "None with kl=None", remedy, "ppo.init")
    # a module whose arrays are parameters may be callable, too
    is_function = callable(ref_params) and jax.tree_util.all_leaves([ref_params])
    reference = cast(Any, partial(cast(Any, ref_params)) if is_function else ref_params)
    measured = config.kl is not None and plain(config.kl, "coef").get("coef") != 0
    if measured and reference is None:
        reference = jax.tree.map(jnp.copy, params)
    kl_coef = jnp.float32(0.0) if config.kl is None else jnp.asarray(config.kl.coef, jnp.float32)
    return PPOState(params, optimizer.init(params), reference, kl_coef, jnp.int32(0))


def make_collect_and_learn(
    actor: protocols.Actor,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    auxiliary: protocols.Auxiliary | None = None,
) -> tuple[Callable[..., Any], Callable[..., tuple[PPOState, Metrics]]]:
    """The two halves of an iteration, around the reward; arguments as in `ppo.make_step`.

    Returns:
      `collect(state, key, prompts) -> samples` and
      `learn(state, key, samples, rewards) -> (state, Metrics)`, both pure.

    Raises:
      ValueError: if the actor cannot do what the configuration asks, or an argument of a part is
        invalid.

    >>> import optax
    >>> from proxlm import lm
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4)
    >>> collect, learn = make_collect_and_learn(actor, optax.sgd(0.1), PPOConfig())
    """
    checks.check_config("ppo", optimizer, config)
    checks.check_actor(actor, config)
    check_parts(config)

    def collect(state, key, prompts):
        prompts_lib.check(prompts)
        prompts = sharding.rows(prompts)
        samples = grouping.grouped(actor, config.group_size).sample(key, state.params, prompts)
        # here already, so that a slow reward is not waited for in vain
        checks.check_batch(samples.tokens.shape[0], config)
        if config.greedy_baseline and actor.greedy is not None:
            greedy = actor.greedy(state.params, prompts)
            samples = jax.tree.map(lambda *rows: jnp.concatenate(rows), samples, greedy)
        return sharding.rows(samples)

    def learn(state, key, samples, rewards):
        checks.check_samples(samples)
        checks.check_numbers(config)
        rewards = judging.as_arrays(rewards, samples.response_mask, jnp)
        samples = sharding.rows(samples)
        learnt_from, summary = experience.prepare(state, samples, rewards, actor, config)
        params, opt_state, report = update.run(state, learnt_from, key, actor, optimizer, config, auxiliary)
        kl_coef = update.adapt_kl_coef(state.kl_coef, summary["kl"], learnt_from.mask.shape[0], config)
        report = summary | report | {"kl_coef": state.kl_coef}
        state = PPOState(params, opt_state, state.ref_params, kl_coef, state.iteration + 1)
        return state, metrics.join(report)

    return sharding.automatic(collect), sharding.automatic(learn)
