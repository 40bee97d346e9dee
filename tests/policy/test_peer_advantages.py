"""Advantages of verl 0.9.1 and TRL 1.16.0, and TRL 1.12.0's PPO, of our pieces, in float64.

Three groups of four: holes, an empty row, and a group of equal rewards.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import aggregation, kl
from proxlm.policy import losses as loss_lib
from proxlm.policy.advantages import group, pass_k, returns, temporal, token
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

VECTORS = vectors_on_disk.load("peer_advantages")
GROUP = 4
MASK = np.array(VECTORS["inputs"]["mask"]) > 0
PREFIX = np.array(VECTORS["prefix"]) > 0
part = functools.partial
whiten = part(temporal.whiten, ddof=1)  # both peers' convention


def grouped(baseline, *more):
    """As `group_advantages`, but an answer without a token counts too, as it does for verl."""

    def estimate(g):
        extra = [fn(g) for fn in more]
        per_sequence = group.by_group(baseline, GROUP, jnp.sum(g["rewards"], 1), *extra)
        return (returns.over_tokens(per_sequence, g["mask"]),)

    return estimate


def gae(discount, gae_lambda):
    def estimate(g):
        one = lambda r, v, m: temporal.gae(r, v, m, discount, gae_lambda)
        estimates, goals = jax.vmap(one)(g["rewards"], g["values"], g["mask"])
        return whiten(estimates, g["mask"]), goals

    return estimate


def reinforce(discount):
    def estimate(g):
        one = lambda r, m: returns.reward_to_go(r, m, discount)
        to_go = jax.vmap(one)(g["rewards"], g["mask"])
        return whiten(to_go, g["mask"]), to_go

    return estimate


def gpg(g):
    centred = grouped(group.centred)(g)[0]
    return (centred * (len(g["scores"]) / jnp.count_nonzero(jnp.sum(g["rewards"], 1))),)


def gdpo(g):
    normalised = part(group.by_group, part(group.group_relative, epsilon=1e-6), GROUP)
    total = normalised(g["scores"]) + 0.5 * normalised(g["formats"])
    return (whiten(returns.over_tokens(total, g["mask"]), g["mask"]),)


def optimal(mask, corrected=True, **settings):
    def estimate(g):
        energies = token.score_energy(g["log_probs"], g["sum_of_squares"])
        energies = energies * g["is_weights"] ** 2 if corrected else energies
        hidden = (jnp.where(mask, x, jnp.nan) for x in (g["rewards"], energies))
        groups = [x.reshape(3, GROUP, -1) for x in (*hidden, mask)]
        fn = part(token.optimal_token, **settings)
        return (jax.vmap(fn)(*groups).reshape(mask.shape),)

    return estimate


def whitened(estimate):
    return lambda g: (whiten(estimate(g)[0], g["mask"]),)


GRPO = part(group.group_relative, epsilon=1e-6)
VERL = {
    "gae 1.0 0.95": gae(1.0, 0.95),
    "gae 0.9 0.8": gae(0.9, 0.8),
    "grpo": grouped(GRPO),
    "grpo without std": grouped(group.centred),
    "grpo_vectorized": grouped(GRPO),
    "grpo_passk": grouped(pass_k.best_minus_second),
    "grpo_passk without std": grouped(part(pass_k.best_minus_second, epsilon=None)),
    "reinforce_plus_plus_baseline": whitened(grouped(group.centred)),
    "rloo": grouped(group.leave_one_out),
    "rloo_vectorized": grouped(group.leave_one_out),
    "opo": grouped(group.length_weighted, lambda g: jnp.sum(g["mask"], 1)),
    "gpg": gpg,
    "gdpo": gdpo,
    "reinforce_plus_plus 1.0": reinforce(1.0),
    "reinforce_plus_plus 0.9": reinforce(0.9),
    "remax": lambda g: (jax.vmap(returns.remax)(g["rewards"], g["greedy"], g["mask"]),),
    "tir_optimal_token_baseline": optimal(MASK),
    "tir_optimal_token_baseline with tail": optimal(MASK, free_tail=False),
    "optimal_token_baseline": optimal(PREFIX, corrected=False),
}


# ---- TRL: an answer that a reward function could not judge is NaN


def weighted_rewards(g):
    """Two rewards of weights 1 and 1/2, and which answers have at least one of them."""
    known = jnp.isfinite(g["rewards of trl"])
    return jnp.where(known, g["rewards of trl"], 0.0) @ jnp.array([1.0, 0.5]), jnp.any(known, 1)


def trl(baseline):
    return lambda g: (group.by_group(baseline, GROUP, *weighted_rewards(g)),)


def batch_scaled(g):
    rewards, valid = weighted_rewards(g)
    return (group.batch_scaled(rewards, GROUP, valid),)


def normalised_then_summed(g):
    parts = g["rewards of trl"].T
    by_group = part(group.by_group, group.group_relative, GROUP)
    total = sum(w * by_group(x, jnp.isfinite(x)) for w, x in zip((1.0, 0.5), parts, strict=True))
    over_batch = part(whiten, epsilon=1e-4, epsilon_inside=False)
    return (over_batch(total, weighted_rewards(g)[1]),)


def rloo(normalised):
    def estimate(g):
        rewards, valid = weighted_rewards(g)
        price = 0.3 * jnp.sum(jnp.where(g["mask"], g["kl"], 0.0), axis=1)
        rewards = jnp.clip(rewards, -0.8, 0.8) - price
        result = group.by_group(group.leave_one_out, GROUP, rewards, valid)
        over_batch = part(whiten, epsilon=1e-4, epsilon_inside=False)
        return (over_batch(result, valid) if normalised else result,)

    return estimate


TRL = {
    "sum_then_normalize group": trl(group.group_relative),
    "sum_then_normalize batch": batch_scaled,
    "sum_then_normalize none": trl(group.centred),
    "normalize_then_sum group": normalised_then_summed,
    "rloo": rloo(False),
    "rloo normalised": rloo(True),
}

# ---- TRL's PPO: the score one slot behind the last token, where the critic learns too


def shaped(g, estimator, whitening_rewards):
    slots = jnp.arange(g["values"].shape[1])[None]
    tokens, longer = slots < g["lengths"][:, None], slots <= g["lengths"][:, None]
    estimate = {"k1": kl.k1, "k3": kl.k3}[estimator](g["log_probs"], g["ref"])
    place = jax.vmap(part(temporal.place_score, place="after"))
    rewards = place(g["scores"], tokens) - 0.2 * jnp.where(tokens, estimate, 0.0)
    if whitening_rewards:
        rewards = whiten(rewards, longer, shift_mean=False)
    one = lambda r, v, m: temporal.gae(r, v, m, 0.98, 0.9)
    estimates, goals = jax.vmap(one)(rewards, g["values"], longer)
    return tokens, longer, rewards, whiten(estimates, tokens), goals


def trl_ppo(g, kinds):
    results = {}
    for name, *options in (("k1", "k1", 0), ("k3", "k3", 0), ("k1 whitened", "k1", 1))[:kinds]:
        _, _, *three = shaped(g, *options)
        for kind, x in zip(("rewards", "advantages", "returns"), three, strict=True):
            results[f"{name} {kind}"] = (x,)
    tokens, longer, _, estimates, goals = shaped(g, "k1", False)

    def loss(new, values):
        losses = loss_lib.clipped(new, g["log_probs"], estimates, tokens, 0.15, 0.15)
        policy = aggregation.weighted_sum(losses, aggregation.token_weights(tokens))
        losses = loss_lib.clipped_value_loss(values, g["values"], goals, 0.2)
        critic = aggregation.weighted_sum(losses, aggregation.token_weights(longer))
        return policy + 0.1 * critic, (policy, critic)

    (total, parts), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(g["new"], g["new_values"])
    of_policy, of_values = gradients
    results |= {"policy gradient": (of_policy,), "value gradient": (of_values,)}
    return results | {"loss": (total, *parts)}


QUICK = (
    "gae 0.9 0.8",
    "grpo",
    "grpo_passk",
    "opo",
    "gdpo",
    "tir_optimal_token_baseline",
    "sum_then_normalize batch",
    "rloo normalised",
)


@functools.cache
def ours(quick):
    @compiled
    def everything(g):
        run = lambda t: {name: fn(g) for name, fn in t.items() if name in QUICK or not quick}
        return {"verl": run(VERL), "trl": run(TRL), "trl ppo": trl_ppo(g, 1 if quick else 3)}

    with jax.enable_x64(True):
        given = {k: jnp.array(x, jnp.float64) for k, x in VECTORS["inputs"].items()}
        given |= {"mask": given["mask"] > 0, "kl": jnp.array(VECTORS["kl"])}
        given |= {"rewards of trl": jnp.array(np.array(VECTORS["trl rewards"], float))}
        results = everything(given | {"lengths": jnp.array(VECTORS["lengths"])})
        return jax.tree.map(np.asarray, results)


def where(peer, name):
    """The slots that a peer's numbers are from."""
    if peer != "trl ppo":
        return PREFIX if name == "optimal_token_baseline" else MASK
    critics = int(not name.endswith(("advantages", "policy gradient")))
    return np.arange(MASK.shape[1]) < np.array(VECTORS["lengths"])[:, None] + critics


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("peer", ["verl", "trl", "trl ppo"])
def test_advantages_are_theirs(peer, quick):
    assert quick or set(ours(quick)[peer]) == set(VECTORS[peer])
    for name, results in ours(quick)[peer].items():
        # eight digits are kept; verl computes two of them in float32
        exact = name not in ("gdpo", "grpo_vectorized")
        for mine, theirs in zip(results, VECTORS[peer][name], strict=True):
            if np.ndim(mine) == 2:
                assert not np.any(mine[~where(peer, name)]), name
                mine = mine[where(peer, name)]
            np.testing.assert_allclose(mine, theirs, atol=1e-7 if exact else 5e-7, err_msg=name)


def test_a_token_baseline_asks_for_one_group():
    x, mask = jnp.zeros((1, 3)), jnp.ones((1, 3), bool)
    with pytest.raises(ValueError, match=r"group_size must be .*, got 1"):
        token.optimal_token(x, x, mask)
    with pytest.raises(ValueError, match=r"mask\.shape must be .*, got \(3,\)"):
        token.optimal_token(x[0], x[0], mask[0])
