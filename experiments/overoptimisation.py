"""Reward over-optimisation: the learnt proxy rises, and the gold reward turns over.

    python -m experiments.overoptimisation            # writes curves.png and report.txt

2 CPU cores (AMD EPYC, 2.6 GHz), 2 minutes (239 s of CPU). PPO without a penalty, against a reward
model of 128 comparisons: from √KL 2.6 to 5.2 (nats) proxy rises from 1.66 ± 0.12 to 2.44 ± 0.35,
and gold falls from 0.92 ± 0.22 to 0.44 ± 0.36, with each of five golds (n=5). With 4096
comparisons gold is still 1.32 ± 0.70 there, after 1.26 ± 0.24: it turns over later, after 1.93 ±
0.71. A penalty of β = 0.05 ends at gold 1.32 ± 0.23 (√KL 3.5). Best of up to 1024 rises to 1.24 ±
0.25 at √KL 2.4 and does not turn over. Beyond √KL 6 seeds part: two of the five policies on few
pairs find texts that gold likes too, three end below what they had.

After Gao, Schulman and Hilton (2023), "Scaling laws for reward model overoptimization", with a
small model of the characters of Shakespeare's plays and a gold reward made for it: `gold_reward`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.support.models import language_model, reward_model
from experiments.support.overoptimisation import gold_reward, language, report
from experiments.support.overoptimisation.language import PARTS, copies
from experiments.support.run import cli, configs, runs
from proxlm import _validation, training
from proxlm.policy import ppo

RM_BATCH = 32  # pairs
SETTINGS = ppo.PPOConfig(num_epochs=2)


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    # comparisons that a reward model learns from
    pairs: tuple[int, int] = configs.field((128, 4096), smoke=(8, 64))
    rm_steps: int = configs.field(300, smoke=20)  # of each reward model
    # weights of the KL, of PPO on fewest pairs; 0 also on most
    kl_coefs: tuple[float, ...] = configs.field((0.0, 0.05, 0.2), smoke=(0.0, 0.2))
    iterations: int = configs.field(64, smoke=8)  # of PPO
    policy_rate: float = 4e-4  # learning rate of PPO

    def validate(self) -> None:
        super().validate()
        configs.check_multiples(self, lm_steps=PARTS, rm_steps=PARTS, iterations=PARTS, rollouts=PARTS)
        if len(self.pairs) != 2 or not 1 <= self.pairs[0] < self.pairs[1]:
            raise _validation.invalid("pairs", self.pairs, "two rising numbers, few and many")
        if self.pairs[1] > 512 and self.pairs[1] % 512:
            raise _validation.invalid("pairs", self.pairs, "a multiple of 512 where above it")
        if self.kl_coefs[0] != 0:
            raise _validation.invalid("kl_coefs", self.kl_coefs, "0 and then numbers above it")
        gold_reward.check_texts(self.context)

    @property
    def lanes(self) -> list[tuple[int, float]]:
        """The comparisons of its reward model and the weight of the KL, one pair a policy."""
        return [(self.pairs[0], beta) for beta in self.kl_coefs] + [(self.pairs[1], 0.0)]


def learn_rewards(run, start, model, compared, config: Config):
    """Reward models `[sizes, seeds]`, each learnt from the first so many comparisons of its gold.

    `compared` is (chosen, rejected), each `[seeds, pairs, T]`.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(language_model.ramp(1e-3, config.rm_steps), weight_decay=0.01),
    )
    advance = training.make_step(functools.partial(gold_reward.loss, model=model), optimizer)

    def step(state, key, compared, size):
        rows = jax.random.randint(key, (RM_BATCH,), 0, size)
        state, metrics = advance(state, jax.tree.map(lambda x: x[rows], compared))
        return state, {"loss": metrics.loss}

    states = copies(training.init(start, optimizer), (len(config.pairs), config.seeds))
    lanes, axes = (compared, jnp.array(config.pairs)), ((None, 0), (0, None))
    key = jax.random.key(config.seed + 4)
    return language.run_lanes(run, "reward models", step, states, lanes, axes, config.rm_steps, key).params


def learn_policies(run, base: language.Language, proxies, golds, config: Config):
    """PPO against every proxy, all lanes and seeds in one vmap; returns the log of its iterations."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.policy_rate, eps=1e-5))
    proxy_model = reward_model.from_language_model(base.params, base.model, base.model.num_layers)[1]
    actor, start, prompts = language.policy(base, config)
    collect, learn = ppo.make_collect_and_learn(actor, optimizer, SETTINGS)

    def step(state, key, proxy, gold):
        key_sample, key_learn = jax.random.split(key)
        samples = collect(state, key_sample, prompts)
        rewards = gold_reward.reward(proxy, samples.tokens, proxy_model)
        worth = jnp.mean(gold_reward.score(gold, base.judge, samples.tokens, base.model))
        state, metrics = learn(state, key_learn, samples, rewards)
        return state, {"kl": metrics.kl, "proxy": metrics.reward, "gold": worth}

    row = jnp.array([config.pairs.index(size) for size, _ in config.lanes])
    proxies = jax.tree.map(lambda x: x[row], proxies)
    kl_coefs = jnp.array([beta for _, beta in config.lanes], jnp.float32)
    states = copies(ppo.init(start, optimizer, SETTINGS), (len(config.lanes), config.seeds))
    # the weight of the KL is a part of the state, since it may adapt
    states = states._replace(kl_coef=jnp.tile(kl_coefs[:, None], (1, config.seeds)))
    lanes, axes = (proxies, golds), ((0, 0), (None, 0))
    key = jax.random.key(config.seed + 5)
    language.run_lanes(run, "ppo", step, states, lanes, axes, config.iterations, key)
    return runs.read_log(run, "ppo")


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Runs all stages; returns the numbers of the report."""
    params, judge, model, first = base = language.learn(run, config)
    keys = jax.random.split(jax.random.key(config.seed), 4)
    draw = jax.jit(gold_reward.samples, static_argnums=(2, 3, 4, 5))
    texts = lambda key, count: draw(key, params, model, first, config.context - 1, count)
    # as many texts from which the best of n are taken as are compared
    pool, compared = (texts(key, 2 * config.pairs[1]) for key in keys[:2])
    pairs = compared.reshape(-1, 2, config.context)

    @jax.jit
    def gold_of(key_gold, key_labels, judge):
        gold = gold_reward.make(key_gold, judge, pool, model)
        score = lambda texts: gold_reward.score(gold, judge, texts, model)
        worth = gold_reward.in_pieces(score, jnp.concatenate([pool, compared])).reshape(2, -1)
        labelled = gold_reward.compare(key_labels, pairs, worth[1].reshape(-1, 2))
        return gold, worth[0], labelled

    seeds = [jax.random.split(key, config.seeds) for key in keys[2:]]
    golds, pool_gold, labelled = jax.vmap(gold_of, (0, 0, None))(*seeds, judge)
    start, proxy_model = reward_model.from_language_model(params, model, model.num_layers)
    learnt = learn_rewards(run, start, proxy_model, labelled, config)
    as_proxy = lambda params: gold_reward.proxy(params, pool, proxy_model)
    proxies = jax.jit(jax.vmap(jax.vmap(as_proxy)))(learnt)
    of_pool = lambda proxy: gold_reward.in_pieces(lambda x: gold_reward.reward(proxy, x, proxy_model), pool)
    pool_proxy = jax.jit(jax.vmap(jax.vmap(of_pool)))(proxies)
    log = learn_policies(run, base, proxies, golds, config)
    return report.write(run, pool_proxy, pool_gold, log, config)


if __name__ == "__main__":
    cli.run(main)
