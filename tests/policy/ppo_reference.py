"""One learning half of PPO in plain loops over rows and tokens; slow, obvious, and the judge."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.policy import table_actor


def learn(params, ref_params, key, samples, rewards, actor, config, adam):
    """Returns the parameters after all epochs, starting Adam at rest; adam = (lr, b1, b2, eps)."""
    samples, rewards = jax.tree.map(np.array, (samples, rewards))
    mask = samples.response_mask & np.isfinite(rewards)[:, None]
    full = config.kl.estimator == "exact"
    score = table_actor.compiled(lambda tree: actor.score(tree, samples, full))
    refer = table_actor.compiled(lambda tree: actor.reference(tree, samples, full))
    old, reference = jax.tree.map(np.array, (score(params), refer(ref_params)))
    token_rewards = _rewards(samples, rewards, old, reference, mask, config)
    values = old.values.astype(float)
    advantages, returns = _gae(token_rewards, values, mask, config)
    if config.whitening is not None:
        advantages = (advantages - advantages[mask].mean()) / _scale(advantages[mask], config)
    data = jax.tree.map(np.float32, {"gain": advantages, "goal": returns, "old": values})
    gradient = table_actor.compiled(jax.grad(lambda *args: _loss(*args, actor, config)))
    moments, step = [jax.tree.map(np.zeros_like, params)] * 2, 0
    for key_epoch in jax.random.split(key, config.num_epochs):
        order = np.array(jax.random.permutation(key_epoch, len(mask)))
        for rows in np.split(order, config.num_minibatches):
            cut = lambda x, rows=rows: x[rows]
            weights = (_weights(mask[rows], config.aggregation), _weights(mask[rows], "token"))
            grads = gradient(params, *jax.tree.map(cut, (samples, reference, data)), *weights)
            step += 1
            params, moments = _adam(params, moments, grads, step, *adam)
    return params


def _rewards(samples, rewards, old, reference, mask, config):
    gap = samples.log_probs - reference.log_probs
    penalty = np.array(_kl(config.kl.estimator, gap, old, reference))
    result = np.zeros(mask.shape)
    for b, t in zip(*np.nonzero(mask), strict=True):
        if config.kl.placement == "reward":
            result[b, t] -= config.kl.coef * penalty[b, t]
        if t + 1 == mask.shape[1] or not mask[b, t + 1 :].any():
            result[b, t] += rewards[b]
            if config.missing_eos_penalty is not None and not samples.ended[b]:
                result[b, t] -= config.missing_eos_penalty
    if config.whitening is not None and config.whitening.rewards:
        mean = result[mask].mean()
        result = (result - mean) / _scale(result[mask], config) + mean
    return result


def _kl(kind, gap, scores, reference):
    if kind == "exact":
        log_p, log_q = scores.distribution, reference.distribution
        return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return {"k1": gap, "k2": gap**2 / 2, "k3": jnp.exp(-gap) - 1 + gap}[kind]


def _weights(mask, aggregation):
    weights = np.zeros(mask.shape, np.float32)
    rows = sum(1 for row in mask if row.any())
    for b, t in zip(*np.nonzero(mask), strict=True):
        weights[b, t] = {
            "token": 1 / mask.sum(),
            "sequence": 1 / rows / mask[b].sum(),
            "sequence_sum": 1 / rows,
            "constant": 1 / rows / mask.shape[1],
        }[aggregation]
    return weights


def _scale(x, config):
    return np.sqrt(x.var(ddof=config.whitening.ddof) + config.whitening.epsilon)


def _gae(rewards, values, mask, config):
    advantages = np.zeros(mask.shape)
    discount, gae_lambda = config.settings["discount"], config.settings["gae_lambda"]
    for b in range(mask.shape[0]):
        next_value = next_advantage = 0.0
        for t in np.nonzero(mask[b])[0][::-1]:
            error = rewards[b, t] + discount * next_value - values[b, t]
            advantages[b, t] = error + discount * gae_lambda * next_advantage
            next_value, next_advantage = values[b, t], advantages[b, t]
    return advantages, advantages + values


def _loss(params, samples, reference, data, policy_weights, value_weights, actor, config):
    scores = actor.score(params, samples, config.kl.estimator == "exact")
    rho, gain = jnp.exp(scores.log_probs - samples.log_probs), data["gain"]
    near = jnp.clip(rho, 1 - config.settings["clip_low"], 1 + config.settings["clip_high"])
    token = -jnp.minimum(gain * rho, gain * near)
    if config.settings["dual_clip"] is not None:
        token = jnp.where(gain < 0, jnp.minimum(token, -config.settings["dual_clip"] * gain), token)
    token -= config.entropy_coef * scores.entropy
    if config.kl.placement == "loss":
        gap = scores.log_probs - reference.log_probs
        token += config.kl.coef * _kl(config.kl.estimator, gap, scores, reference)
    error, old = (scores.values - data["goal"]) ** 2, data["old"]
    if config.value.clip is not None:
        short = old + jnp.clip(scores.values - old, -config.value.clip, config.value.clip)
        error = jnp.maximum(error, (short - data["goal"]) ** 2)
    return (policy_weights * token + value_weights * config.value.coef * error / 2).sum()


def _adam(params, moments, gradient, step, rate, b1, b2, epsilon):
    first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments[0], gradient)
    second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, moments[1], gradient)

    def move(p, m, v):
        return p - rate * (m / (1 - b1**step)) / (jnp.sqrt(v / (1 - b2**step)) + epsilon)

    return jax.tree.map(move, params, first, second), [first, second]
