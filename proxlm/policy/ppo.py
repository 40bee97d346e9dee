"""Proximal policy optimisation of a language model, the whole iteration as one pure function.

    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state, metrics = jax.jit(step)(state, key)

samples, rewards, computes advantages, and runs epochs of freshly shuffled minibatches. `step` is
the body of a `scan` over iterations; `vmap` it over states and keys for seeds, and build it inside
the vmapped function for hyper-parameters: every number in `PPOConfig` that gives no shape may be
traced. A reward that is ordinary Python goes between two jitted halves: `make_host_step`.

Fine-tuning of a part is a matter of the optimizer, not of the model:

    optax.partition({"learns": chain, "frozen": optax.set_to_zero()}, labels)

with labels by path keeps every bit of what is frozen, and no moments of it; a chain that ends with
`apply_prox(penalties.nuclear(...), learning_rate, anchored=True)` keeps changes of low rank. An actor of
`lm.trainable` computes no gradient of what is frozen either.

Source: Schulman et al. 2017; Ziegler et al. 2019 and Ouyang et al. 2022 for language models.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from proxlm import _validation, sharding
from proxlm.policy import protocols
from proxlm.policy._configuration.config import KL, PPOConfig, Value, Whitening
from proxlm.policy._iteration import checks, judging, resampling
from proxlm.policy._iteration import prompts as prompts_lib
from proxlm.policy._iteration.checks import check_batch
from proxlm.policy._iteration.halves import PPOState, init, make_collect_and_learn
from proxlm.policy._iteration.host import Iteration, host_parts, iterate
from proxlm.policy._iteration.metrics import Metrics

__all__ = [
    "KL",
    "Iteration",
    "Metrics",
    "PPOConfig",
    "PPOState",
    "Value",
    "Whitening",
    "check_batch",
    "init",
    "iterate",
    "make_collect_and_learn",
    "make_host_step",
    "make_step",
]

Step = Callable[["PPOState", jax.Array], tuple["PPOState", Metrics]]


def make_step(
    actor: protocols.Actor,
    reward: protocols.Reward,
    prompts: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    auxiliary: protocols.Auxiliary | None = None,
) -> Step:
    """One iteration of PPO as a pure function, `step(state, key) -> (state, Metrics)`.

    Args:
      actor: sample, score, reference and greedy, as `lm.make_actor` makes them.
      reward: `(Samples) -> [B]`, a pure function; or `-> [B, R]` of tokens, or a dict of several by
        name, as is {name: function}: `config.reward_weights` weighs them, and the metrics hold the
        mean of each. NaN is not judged: it adds nothing, and what no reward judged is left out.
        Where the prompts have fields beside tokens and mask, such as right answers, it is
        `(Samples, prompts)`, with a row of the prompts for each row of the samples.
      prompts: `(key) -> Prompts`, a pure function; each is answered `config.group_size` times.
      optimizer: any `optax.GradientTransformation`; it is handed the extra argument `approx_kl`,
        of the minibatch before the update.
      auxiliary: `(params, key) -> scalar`, a loss added to that of every minibatch, or None; in
        PPO-ptx (Ouyang et al. 2022) a coefficient times a language model's loss on its own texts.

    Raises:
      ValueError: if the prompts are a loader or change from call to call, or as
        `make_collect_and_learn`; while tracing, if the reward is not `[B]` or the batch does not
        divide into the minibatches.

    >>> import optax
    >>> from proxlm import lm
    >>> model = lm.ModelConfig(vocab_size=8, num_layers=1, width=8, value_head=True)
    >>> actor, tx, config = lm.make_actor(model, 4), optax.adam(1e-3), PPOConfig(num_epochs=1)
    >>> prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 2), 0, 8))
    >>> reward = lambda samples: jnp.mean(samples.tokens[:, 2:] < 4, axis=1)
    >>> state = init(actor.init(jax.random.key(0)), tx, config)
    >>> state, metrics = jax.jit(make_step(actor, reward, prompts, tx, config))(state, jax.random.key(1))
    >>> metrics.num_updates.item(), state.iteration.item()
    (4, 1)
    """
    reward = checks.reward_function("ppo.make_step", reward, config)
    prompts_lib.check_pure(prompts)
    if checks.calls_python(actor):
        remedy = "A tool in Python is called by make_host_step or iterate."
        raise _validation.invalid("actor.turns.on_host", True, "False", remedy, "ppo.make_step")
    collect, learn = make_collect_and_learn(actor, optimizer, config, auxiliary)

    def draw(state, key_prompts, key_sample):
        asked = prompts(key_prompts)
        samples = collect(state, key_sample, asked)
        rewards = reward(samples, *prompts_lib.for_reward(asked, config))
        return samples, judging.as_arrays(rewards, samples.response_mask, jnp)

    def step(state, key):
        key_prompts, key_sample, key_learn = jax.random.split(key, 3)
        drawn = draw(state, key_prompts, key_sample)
        if config.max_draws > 1:
            again = lambda key: draw(state, *jax.random.split(key, 3)[:2])
            drawn = resampling.until_varied(again, key, drawn, config)
        return learn(state, key_learn, *drawn)

    return sharding.automatic(step)


def make_host_step(
    actor: protocols.Actor,
    reward: protocols.Reward,
    prompts: protocols.PromptSource,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    auxiliary: protocols.Auxiliary | None = None,
    finish: Callable[[Any], Any] | None = None,
    donate: bool = False,
) -> Step:
    """An iteration whose prompts and reward are ordinary Python: a loader, a scorer of strings.

    Other arguments and errors as in `make_step`; a step also raises ValueError where the prompts are
    exhausted, with the state untouched.

    Args:
      reward: `(Samples of NumPy arrays) -> [B]` floats, or as in `make_step`, called between two
        jitted halves; None is not judged, as NaN is. `policy.rewards` makes concurrent ones.
      prompts: `(key) -> Prompts`, called at every iteration; or an iterator, or a loader, which is
        begun again at its end.
      finish: (samples of NumPy arrays) -> samples, before the reward and what is learnt from, such as
        a `partial` of `actors.stop_at`; or None.
      donate: give the memory of the state to the new one; the old one cannot be read any more.

    Returns:
      `step(state, key) -> (state, Metrics)`; not itself jittable. The same keys give the same
      bits as `make_step` with the same prompts and reward.

    >>> import optax
    >>> from proxlm import lm
    >>> model = lm.ModelConfig(vocab_size=8, num_layers=1, width=8, value_head=True)
    >>> actor, tx, config = lm.make_actor(model, 4), optax.adam(1e-3), PPOConfig()
    >>> loader = [lm.Prompts(jnp.full((8, 2), i)) for i in range(3)]
    >>> reward = lambda samples: [sum(row) for row in samples.tokens.tolist()][:7]
    >>> state = init(actor.init(jax.random.key(0)), tx, config)
    >>> make_host_step(actor, reward, loader, tx, config)(state, jax.random.key(1))
    Traceback (most recent call last):
        ...
    ValueError: reward must be one number per response, of shape (8,), or per token, of shape (8, 4), got ...
    """
    parts = host_parts(actor, reward, prompts, optimizer, config, auxiliary, finish, donate)
    sample, judge, learn, redraw = parts

    def step(state, key):
        drawn = redraw(state, key, judge(*sample(state, key)))
        return learn(state, jax.random.split(key, 3)[2], *drawn)

    return step
