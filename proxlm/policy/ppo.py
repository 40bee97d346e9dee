"""Proximal policy optimisation of a language model, the whole iteration as one pure function.

    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state, metrics = jax.jit(step)(state, key)

samples, rewards, computes advantages, and runs epochs of freshly shuffled minibatches.  `step` is
the body of a `scan` over iterations; `vmap` it over states and keys for seeds, and build it inside
the vmapped function for hyper-parameters: every number in `PPOConfig` that gives no shape may be
traced.  A reward that is ordinary Python goes between two jitted halves: `make_host_step`.

Fine-tuning of a part is a matter of the optimizer, not of the model:

    optax.partition({"learns": chain, "frozen": optax.set_to_zero()}, labels)

with labels by path keeps every bit of what is frozen, and no moments of it; a chain that ends with
`apply_prox(penalties.nuclear(...), learning_rate, anchored=True)` keeps changes of low rank.

Source: Schulman et al. 2017; Ziegler et al. 2019 and Ouyang et al. 2022 for language models.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.policy import _experience as experience_lib
from proxlm.policy import _update, kl
from proxlm.policy.config import KL, PPOConfig, Value, Whitening, check_parts

__all__ = [
    "KL",
    "PPOConfig",
    "PPOState",
    "Value",
    "Whitening",
    "init",
    "make_collect_and_learn",
    "make_host_step",
    "make_step",
]


class PPOState(NamedTuple):
    """Everything an iteration changes, and the reference it does not.

    Attributes:
      params: what the optimizer moves: the policy's and the critic's.
      opt_state: the optimizer's.
      ref_params: the reference policy's, in the structure of params (a critic is not needed).
      kl_coef: β, scalar.
      iteration: how many have been done, scalar.
    """

    params: Any
    opt_state: Any
    ref_params: Any
    kl_coef: jax.Array
    iteration: jax.Array


def init(params, optimizer, config, ref_params=None):
    """The state before the first iteration.

    Args:
      params: of `Actor.init`, or with pretrained parts put in.
      optimizer: any `optax.GradientTransformation`.
      config: a `PPOConfig`.
      ref_params: the reference; None takes a copy of params, so that the state can be donated.

    Returns:
      A `PPOState`.

    >>> import optax
    >>> init({"policy": jnp.ones(2)}, optax.sgd(0.1), PPOConfig()).kl_coef.item()
    0.05000000074505806
    """
    if config.kl is None and ref_params is not None:
        raise _validation.invalid(
            "ref_params", type(ref_params), "None with kl=None", "Give the config a KL.", "ppo.init"
        )
    if config.kl is not None and ref_params is None:
        ref_params = jax.tree.map(jnp.copy, params)
    kl_coef = jnp.float32(0.0) if config.kl is None else jnp.asarray(config.kl.coef, jnp.float32)
    return PPOState(params, optimizer.init(params), ref_params, kl_coef, jnp.int32(0))


def make_step(actor, reward, prompts, optimizer, config, auxiliary=None):
    """One iteration of PPO as a pure function.

    Args:
      actor: sample, score, reference and greedy, as `lm.make_actor` makes them.
      reward: `(Samples) -> [B]`, a pure function.
      prompts: `(key) -> Prompts`; each is answered `config.group_size` times.
      optimizer: any `optax.GradientTransformation`; it is handed the extra arguments `approx_kl`,
        of the minibatch before the update, and `first_update`, True at an iteration's first.
      config: a `PPOConfig`.
      auxiliary: `(params, key) -> scalar`, a loss added to that of every minibatch, or None; in
        PPO-ptx (Ouyang et al. 2022) a coefficient times a language model's loss on its own texts.

    Returns:
      `step(state, key) -> (state, Metrics)`.

    Raises:
      ValueError: while tracing, when the reward is not `[B]` or the batch does not divide into
        the minibatches.

    >>> import optax
    >>> from proxlm import lm
    >>> model = lm.ModelConfig(vocab_size=8, num_layers=1, width=8, value_head=True)
    >>> actor, tx, config = lm.make_actor(model, 4), optax.adam(1e-3), PPOConfig(num_epochs=1)
    >>> prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 2), 0, 8))
    >>> reward = lambda samples: jnp.mean(samples.tokens[:, 2:] < 4, axis=1)
    >>> state = init(actor.init(jax.random.key(0)), tx, config)
    >>> state, metrics = make_step(actor, reward, prompts, tx, config)(state, jax.random.key(1))
    >>> metrics.num_updates.item(), state.iteration.item()
    (4, 1)
    """
    collect, learn = make_collect_and_learn(actor, optimizer, config, auxiliary)

    def step(state, key):
        key_prompts, key_sample, key_learn = jax.random.split(key, 3)
        samples = collect(state, key_sample, prompts(key_prompts))
        return learn(state, key_learn, samples, reward(samples))

    return step


def make_collect_and_learn(actor, optimizer, config, auxiliary=None):
    """The two halves of an iteration, around the reward.

    Args:
      actor: as in `make_step`.
      optimizer: as in `make_step`.
      config: a `PPOConfig`.
      auxiliary: as in `make_step`.

    Returns:
      `collect(state, key, prompts) -> samples` and
      `learn(state, key, samples, rewards) -> (state, Metrics)`, both pure.

    Raises:
      ValueError: a greedy baseline is asked of an actor that cannot sample greedily.

    >>> import optax
    >>> from proxlm import lm
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8, value_head=True), 4)
    >>> collect, learn = make_collect_and_learn(actor, optax.sgd(0.1), PPOConfig())
    """
    check_greedy(actor, config)
    check_parts(config)

    def collect(state, key, prompts):
        answered = prompts
        if config.group_size > 1:
            answered = jax.tree.map(lambda x: jnp.repeat(x, config.group_size, axis=0), prompts)
        samples = actor.sample(key, state.params, answered)
        # here already, so that a slow reward is not waited for in vain
        _update.check_batch(samples.tokens.shape[0], config)
        if config.greedy_baseline:
            greedy = actor.greedy(state.params, prompts)
            samples = jax.tree.map(lambda *rows: jnp.concatenate(rows), samples, greedy)
        return samples

    def learn(state, key, samples, rewards):
        rewards = jnp.asarray(rewards)
        check_shape(rewards, samples.tokens.shape[0])
        experience, summary = experience_lib.prepare(state, samples, rewards, actor, config)
        params, opt_state, report = _update.run(state, experience, key, actor, optimizer, config, auxiliary)
        kl_coef = state.kl_coef
        if config.kl is not None and config.kl.target is not None:
            kl_coef = kl.adapt(
                kl_coef,
                summary.kl,
                experience.mask.shape[0],
                target=config.kl.target,
                horizon=10_000.0 if config.kl.horizon is None else config.kl.horizon,
            )
        metrics = _update.Metrics(**summary._asdict(), kl_coef=state.kl_coef, **report)
        return PPOState(params, opt_state, state.ref_params, kl_coef, state.iteration + 1), metrics

    return collect, learn


def make_host_step(actor, reward, prompts, optimizer, config, auxiliary=None):
    """An iteration whose reward is ordinary Python, such as a scorer of strings.

    Args:
      actor: as in `make_step`.
      reward: `(Samples of NumPy arrays) -> [B]` floats; called between two jitted halves.
      prompts: as in `make_step`.
      optimizer: as in `make_step`.
      config: a `PPOConfig`.
      auxiliary: as in `make_step`.

    Returns:
      `step(state, key) -> (state, Metrics)`; not itself jittable.  The same keys give the same
      bits as `make_step` with the same reward.

    Raises:
      ValueError: from step, when the reward is not `[B]` or not finite, with the state untouched.

    >>> import optax
    >>> from proxlm import lm
    >>> model = lm.ModelConfig(vocab_size=8, num_layers=1, width=8, value_head=True)
    >>> actor, tx, config = lm.make_actor(model, 4), optax.adam(1e-3), PPOConfig()
    >>> prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 2), 0, 8))
    >>> reward = lambda samples: [float("nan")] * len(samples.tokens)
    >>> state = init(actor.init(jax.random.key(0)), tx, config)
    >>> make_host_step(actor, reward, prompts, tx, config)(state, jax.random.key(1))
    Traceback (most recent call last):
        ...
    ValueError: reward returned nan for row 0 (8 of 8 not finite): expected a finite number for ...
    """
    collect, learn = make_collect_and_learn(actor, optimizer, config, auxiliary)
    first = jax.jit(lambda state, key, key_prompts: collect(state, key, prompts(key_prompts)))
    second = jax.jit(learn)

    def step(state, key):
        key_prompts, key_sample, key_learn = jax.random.split(key, 3)
        samples = first(state, key_sample, key_prompts)
        rewards = np.asarray(reward(jax.device_get(samples)), np.float32)
        check_shape(rewards, samples.tokens.shape[0])
        _check_finite(rewards)
        return second(state, key_learn, samples, rewards)

    return step


def check_shape(rewards, batch):
    """Raises ValueError when the rewards are not one number for each of `batch` responses.

    >>> check_shape(jnp.zeros(4), batch=4)
    """
    if rewards.shape != (batch,):
        raise ValueError(
            f"reward returned shape {rewards.shape}: expected one number per response, ({batch},)"
        )


def check_greedy(actor, config):
    """Raises ValueError when a greedy baseline is asked of an actor that cannot sample greedily.

    >>> from proxlm import lm
    >>> actor = lm.make_actor(lm.ModelConfig(8, num_layers=1, width=8), 4, critic=False)
    >>> check_greedy(actor, PPOConfig(greedy_baseline=True))
    """
    if config.greedy_baseline and getattr(actor, "greedy", None) is None:
        raise ValueError(
            "greedy_baseline is True, but actor.greedy is None: expected (params, prompts) -> "
            "samples of the likeliest tokens, as lm.make_actor gives it; add one, or take a "
            "recipe without."
        )


def _check_finite(rewards):
    """Raises ValueError naming the first row that is not finite."""
    bad = np.flatnonzero(~np.isfinite(rewards))
    if bad.size:
        raise ValueError(
            f"reward returned {rewards[bad[0]]} for row {bad[0]} ({bad.size} of {rewards.size} "
            "not finite): expected a finite number for every response; clip or replace it there"
        )
