"""Training of a translator on the chrF of its samples: by PPO, or by minimum risk.

Minimum risk training (Shen et al. 2016) makes the expected cost of a few candidates small:

    R(θ) = Σ_y Q(y)·cost(y),   Q(y) ∝ p_θ(y | x)^α over the distinct candidates y of a source x

Where policy gradients weigh the log-probability of each sample by its advantage, here the
candidates share one probability mass, so that a better one gains what a worse one loses.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.support.run import supervised
from experiments.support.translation import batches, report
from proxlm import lm, training
from proxlm.policy import ppo

CHUNK = 5  # iterations a call
MINIBATCHES = 4  # optimizer steps of an iteration
SHARPNESS = 0.05  # α of minimum risk


class Setting(NamedTuple):
    """The inputs of both methods of learning by reward."""

    corpus: batches.Corpus
    model: lm.ModelConfig
    params: Any
    optimizer: optax.GradientTransformation
    quality: Callable  # of params, for the curves
    config: Any  # of `experiments.translation`


def sampling(config: Any) -> lm.SamplingConfig:
    """The sampler of candidates, at the config's temperature."""
    return dataclasses.replace(report.SAMPLED, temperature=config.temperature)


def by_ppo(run, setting: Setting, settings: ppo.PPOConfig):
    """The library's iteration; the candidates of a source are compared with one another.

    Returns the params of the policies, one row per seed.
    """
    corpus, model, params, optimizer, _, config = setting
    actor = lm.make_actor(model, corpus.longest + 1, critic=False, sampling=sampling(config))
    collect, learn = ppo.make_collect_and_learn(actor, optimizer, settings)

    def step(train, state, key):
        key_rows, key_sample, key_learn = jax.random.split(key, 3)
        rows = jax.random.choice(key_rows, len(train["sources"]), (config.sources,))
        samples = collect(state, key_sample, lm.Prompts(train["sources"][rows]))
        references = jnp.repeat(train["references"][rows], config.candidates, axis=0)
        state, metrics = learn(state, key_learn, samples, judge(samples, references, train))
        return state, {name: getattr(metrics, name) for name in ("reward", "entropy", "length")}

    state = ppo.init({"policy": params}, optimizer, settings)
    policy = lambda state: state.params["policy"]
    return policy(each_seed(run, "PPO", step, state, policy, setting))


def by_risk(run, setting: Setting):
    """Gradient steps on the expected cost 1 − chrF of the candidates.

    As many sources are seen as by PPO, and as many steps taken: its minibatches are batches here.
    Returns the params, one row per seed.
    """
    advance = training.make_step(make_risk(setting.model, setting.config), setting.optimizer, has_aux=True)

    def step(train, state, key):
        keys = jax.random.split(key, MINIBATCHES)
        state, metrics = jax.lax.scan(lambda *carry: advance(carry[0], (carry[1], train)), state, keys)
        return state, jax.tree.map(jnp.mean, metrics.aux)

    state = training.init(setting.params, setting.optimizer)
    policy = lambda state: state.params
    return policy(each_seed(run, "minimum risk", step, state, policy, setting))


def make_risk(model: lm.ModelConfig, config):
    """The loss of a batch `(key, train)`: the mean risk of sources that the key draws."""
    sources = config.sources // MINIBATCHES
    groups = lambda x: x.reshape(sources, config.candidates, *x.shape[1:])

    def loss(params, batch):
        key, train = batch
        key_rows, key_sample = jax.random.split(key)
        rows = jax.random.choice(key_rows, len(train["sources"]), (sources,))
        many = lambda x: jnp.repeat(x[rows], config.candidates, axis=0)
        samples = lm.sample(
            key_sample,
            jax.lax.stop_gradient(params),
            many(train["sources"]),
            model,
            config.longest + 1,
            sampling=sampling(config),
        )
        rewards = judge(samples, many(train["references"]), train)
        mask = samples.response_mask
        scores = lm.score(params, samples.tokens, model, mask=samples.mask, start=mask.shape[1])
        total = lambda x: jnp.sum(jnp.where(mask, x, 0.0), axis=1)
        distinct = jax.vmap(is_first)(groups(samples.tokens))
        log_probs, costs = groups(total(scores.log_probs)), groups(1 - rewards)
        risk_of = functools.partial(risk, sharpness=SHARPNESS)
        entropy = jnp.sum(total(scores.entropy)) / jnp.sum(mask)
        length = jnp.mean(jnp.sum(mask, axis=1))
        aux = {"reward": jnp.mean(rewards), "entropy": entropy, "length": length}
        return jnp.mean(jax.vmap(risk_of)(log_probs, costs, distinct)), aux

    return loss


def risk(log_probs: jax.Array, costs: jax.Array, distinct: jax.Array, sharpness: float):
    """Expected cost under the renormalised weights p^α of the distinct candidates, all `[K]`.

    >>> half = jnp.log(jnp.array([0.5, 0.125, 0.5]))
    >>> first_two = jnp.array([True, True, False])
    >>> round(float(risk(half, jnp.array([0.0, 1.0, 9.0]), first_two, 0.5)), 4)
    0.3333
    """
    weights = jax.nn.softmax(jnp.where(distinct, sharpness * log_probs, -jnp.inf))
    return jnp.sum(jnp.where(distinct, weights * costs, 0.0))


def is_first(tokens: jax.Array) -> jax.Array:
    """Mask of the candidates `[K, R]` that do not repeat an earlier one; bool `[K]`.

    >>> is_first(jnp.array([[1, 2], [1, 3], [1, 2]])).tolist()
    [True, True, False]
    """
    same = jnp.all(tokens[:, None] == tokens[None], axis=2)
    return jnp.sum(jnp.tril(same), axis=1) == 1


def judge(samples: lm.Samples, references, train):
    """chrF of what was sampled, in [0, 1]: `[B]`."""
    tokens = samples.tokens[:, -samples.response_mask.shape[1] :]
    return batches.reward(tokens, samples.response_mask, references, train["table"])


def each_seed(run, name, step, state, policy, setting: Setting):
    """Runs step(train, state, key) for every seed, all from one state; returns their states."""
    corpus, config = setting.corpus, setting.config
    part = corpus.train
    train = {"sources": batches.sources(part.rows), "references": part.references}
    train["table"] = corpus.table

    def one_seed(train, state, key):
        return jax.lax.scan(functools.partial(step, train), state, jax.random.split(key, CHUNK))

    @functools.partial(jax.jit, donate_argnums=1)
    def advance(train, states, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(config.seeds))
        # A map and not a vmap: on a CPU the seeds gain nothing from one another.
        return jax.lax.map(lambda row: one_seed(train, *row), (states, keys))

    def run_chunk(states, key):
        states, metrics = advance(train, states, key)
        numbers = {name: jnp.mean(x, axis=1) for name, x in metrics.items()}
        seed = lambda i: jax.tree.map(lambda x: x[i], policy(states))
        numbers["chrf"] = jnp.stack([setting.quality(seed(i)) for i in range(config.seeds)])
        return states, [numbers]

    train = jax.device_put(train)
    states = jax.tree.map(lambda x: jnp.repeat(x[None], config.seeds, axis=0), state)
    count, shown = config.iterations // CHUNK, ("reward", "entropy", "chrf")
    options = {"key": jax.random.key(config.seed), "every": 2, "shown": shown}
    return supervised.run_resumable(run, name, run_chunk, states, count, CHUNK, **options)
