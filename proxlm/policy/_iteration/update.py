"""One PPO update: from experience to new parameters, by epochs of shuffled minibatches."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from proxlm import sharding
from proxlm.policy import aggregation, diagnostics, kl, losses, protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import checks, grouping
from proxlm.policy._iteration.experience import Experience, all_finite
from proxlm.policy._iteration.reference import params_of, renormalised, truncates

__all__ = ["MEANS", "adapt_kl_coef", "run"]

# the metrics that are means over the updates
MEANS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction_low",
    "clip_fraction_high",
    "effective_sample_size",
    "grad_norm",
)


def run(
    state: Any,
    experience: Experience,
    key: jax.Array,
    actor: protocols.Actor,
    optimizer: optax.GradientTransformation,
    config: PPOConfig,
    auxiliary: protocols.Auxiliary | None = None,
) -> tuple[optax.Params, optax.OptState, dict[str, jax.Array]]:
    """Epochs of freshly shuffled minibatches: `(params, opt_state, report)`, the report a dict of scalars."""
    batch = experience.mask.shape[0]
    keys = None
    if auxiliary is not None:
        key, key_auxiliary = jax.random.split(key)
        keys = jax.random.split(key_auxiliary, config.num_epochs * config.num_minibatches)
    actor = grouping.grouped(actor, size := grouping.in_update(actor, batch, config))
    rows = _shuffled(key, batch, size, config)
    optimizer = optax.with_extra_args_support(optimizer)

    def attempt(carry, turn):
        (params, opt_state, done), (rows, key) = carry, turn
        # pinned, for a gather by random rows would give every device all of them
        name = "a minibatch" if config.num_microbatches == 1 else None
        minibatch = sharding.rows(jax.tree.map(lambda x: x[rows], experience), name=name)
        grads, report = _gradient(params, minibatch, state, actor, config)
        if auxiliary is not None:
            grads = jax.tree.map(jnp.add, grads, jax.grad(auxiliary)(params, key))
        proceed = jnp.bool_(True) if config.max_kl is None else report["approx_kl"] <= config.max_kl
        updates, new_opt_state = optimizer.update(grads, opt_state, params, approx_kl=report["approx_kl"])
        new = (optax.apply_updates(params, updates), new_opt_state)
        if config.max_kl is not None:
            new = jax.tree.map(lambda new, old: jnp.where(proceed, new, old), new, (params, opt_state))
        return (*new, done | ~proceed), _pack(report) | {"done": proceed}

    def skip(carry, turn):
        return carry, jax.tree.map(jnp.zeros_like, jax.eval_shape(attempt, carry, turn)[1])

    guarded = lambda carry, turn: jax.lax.cond(carry[2], skip, attempt, carry, turn)
    carry = (state.params, state.opt_state, jnp.zeros_like(experience.mask, shape=()))
    (params, opt_state, _), reports = jax.lax.scan(
        attempt if config.max_kl is None else guarded, carry, (rows, keys)
    )
    report = _reduce(reports)
    losses_finite = jnp.isfinite(report["policy_loss"] + report["value_loss"])
    return params, opt_state, report | {"finite": all_finite(params) & losses_finite}


def _shuffled(key, batch, size, config):
    """Numbers of rows `[updates, rows]`, those of a group of `size` on end, in a new order each epoch."""
    shuffle = lambda key: jax.random.permutation(key, batch // size)
    order = jax.vmap(shuffle)(jax.random.split(key, config.num_epochs))
    rows = order[:, :, None] * size + jnp.arange(size)[None, None]
    return rows.reshape(config.num_epochs * config.num_minibatches, -1)


def adapt_kl_coef(
    kl_coef: jax.Array, observed_kl: jax.Array, num_responses: int, config: PPOConfig
) -> jax.Array:
    """The KL coefficient of the next iteration: the same without a target.

    >>> from proxlm.policy import ppo
    >>> adapt_kl_coef(jnp.float32(0.5), jnp.float32(9.0), 64, ppo.PPOConfig()).item()
    0.5
    """
    if config.kl is None or config.kl.target is None:
        return kl_coef
    horizon = checks.DEFAULT_HORIZON if config.kl.horizon is None else config.kl.horizon
    options = {"target": config.kl.target, "horizon": horizon, "max_error": checks.MAX_KL_ERROR}
    return kl.adapt(kl_coef, observed_kl, num_responses, **options)


def _gradient(params, batch, state, actor, config):
    """Gradient of the loss of one minibatch, and what to report of it."""
    weights = {
        "policy": aggregation.weights(batch.mask, config.aggregation),
        "value": aggregation.weights(batch.mask, "token"),
    }
    grad_fn = jax.value_and_grad(_loss, has_aux=True)

    def accumulate(total, microbatch):
        (_, aux), grads = grad_fn(params, *microbatch, state, actor, config)
        return jax.tree.map(jnp.add, total, grads), aux

    if config.num_microbatches == 1:
        (_, aux), grads = grad_fn(params, batch, weights, state, actor, config)
    else:
        split = lambda x: x.reshape(config.num_microbatches, -1, *x.shape[1:])
        # in float32 at least: a sum in bfloat16 stops growing once its terms are 1/256 of it
        wide = lambda x: jnp.zeros_like(x, jnp.promote_types(x.dtype, jnp.float32))
        zeros = jax.tree.map(wide, params)
        pieces = sharding.pieces(jax.tree.map(split, (batch, weights)), "a micro-batch")
        total, aux = jax.lax.scan(accumulate, zeros, pieces)
        grads = jax.tree.map(lambda grad, x: grad.astype(x.dtype), total, params)
        aux = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), aux)
    report = diagnostics.policy_diagnostics(
        aux["log_probs"],
        _old_log_probs(batch),
        batch.advantages,
        batch.mask,
        *diagnostics.clip_bounds(config.loss),
    )._asdict()
    report["policy_loss"] = aggregation.weighted_sum(aux["policy_loss"], weights["policy"])
    report["value_loss"] = aggregation.weighted_sum(aux["value_loss"], weights["value"])
    report["entropy"] = aggregation.masked_mean(aux["entropy"], batch.mask)
    # behind the barrier, or XLA shares g² with Adam's moment and writes it out
    report["grad_norm"] = optax.tree.norm(jax.lax.optimization_barrier(grads))
    return grads, report


def _loss(params, batch, weights, state, actor, config):
    """Σ w·(policy − c_e·entropy + β·KL) + c_v·Σ w·value over a minibatch, or a part of one."""
    scores, divergences = _scores_and_kl(params, batch, state, actor, config.kl)
    old_log_probs = _old_log_probs(batch)
    policy_loss = config.loss(scores.log_probs, old_log_probs, batch.advantages, batch.mask)
    if batch.correction is not None:
        policy_loss = policy_loss * batch.correction
    per_token = policy_loss
    if not (isinstance(config.entropy_coef, (int, float)) and config.entropy_coef == 0):
        per_token = per_token - config.entropy_coef * scores.entropy
    if divergences is not None:
        per_token = per_token + kl.scaled(state.kl_coef, divergences)
    total = aggregation.weighted_sum(per_token, weights["policy"])
    value_loss = jnp.zeros_like(policy_loss)
    if config.value is not None:
        value_loss = losses.clipped_value_loss(
            aggregation.select(scores.values, batch.mask), batch.values, batch.returns, config.value.clip
        )
        total += config.value.coef * aggregation.weighted_sum(value_loss, weights["value"])
    aux = {"log_probs": scores.log_probs, "entropy": scores.entropy}
    aux |= {"policy_loss": policy_loss, "value_loss": value_loss}
    return total, jax.lax.stop_gradient(aux)


def _old_log_probs(batch):
    return batch.samples.log_probs if batch.old_log_probs is None else batch.old_log_probs


def _scores_and_kl(params, batch, state, actor, settings):
    """The scores, and the KL penalty of each token, differentiable, or None where the loss has none."""
    if settings is None or batch.reference is None:
        return actor.score(params, batch.samples), None
    select = lambda x: aggregation.select(x, batch.mask)
    if settings.estimator != "exact":
        # masked before it is computed
        scores = actor.score(params, batch.samples)
        return scores, kl.estimator(settings.estimator)(select(scores.log_probs), select(batch.reference))
    of = lambda own, other, tokens: kl.exact(own, renormalised(own, other, truncates(actor)))
    ref_params = params_of(state.ref_params, state.params)
    scores, divergences = actor.compare(of, params, batch.samples, ref_params, batch.reference)
    return scores, select(divergences)


def _pack(report):
    """The numbers of one update in few arrays: a loop writes each of its outputs on its own."""
    extremes = {name: report[name] for name in ("ratio_min", "ratio_max")}
    return extremes | {"means": jnp.stack([report[name] for name in MEANS])}


def _reduce(reports):
    """Means over the updates that were done, extremes over the same."""
    done, low, high = reports["done"], reports["ratio_min"], reports["ratio_max"]
    means = jnp.sum(jnp.where(done[:, None], reports["means"], 0.0), axis=0)
    return dict(zip(MEANS, means / jnp.maximum(jnp.sum(done), 1), strict=True)) | {
        "ratio_min": jnp.min(jnp.where(done, low, 1.0)),
        "ratio_max": jnp.max(jnp.where(done, high, 1.0)),
        "first_ratio_error": jnp.maximum(high[0] - 1, 1 - low[0]),
        "num_updates": jnp.sum(done),
    }
