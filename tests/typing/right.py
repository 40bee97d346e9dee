"""A user's program in which a type checker finds nothing to report."""

import jax
import jax.numpy as jnp
import optax

import proxlm
from proxlm import lm, penalties
from proxlm.policy import ppo


def sparse(params: dict[str, jax.Array], grads: dict[str, jax.Array]) -> dict[str, jax.Array]:
    penalty: proxlm.Penalty = penalties.group_lasso(0.1, axis=0)
    tx = optax.chain(optax.sgd(0.1), proxlm.apply_prox(penalty, 0.1))
    updates, _ = tx.update(grads, tx.init(params), params)
    print(penalty.value(params) + 1.0, penalty.prox(params, 0.1)["w"].shape)
    return {"w": params["w"] + jax.tree.leaves(updates)[0]}


def ppo_iteration(key: jax.Array) -> jax.Array:
    actor = lm.make_actor(lm.ModelConfig(vocab_size=8, value_head=True), num_tokens=4)
    tx, config = proxlm.proximal_adam(1e-3, penalties.l1(1e-4)), ppo.PPOConfig()
    step = ppo.make_step(
        actor,
        lambda samples: jnp.mean(samples.tokens < 4, axis=1),
        lambda key: lm.Prompts(jax.random.randint(key, (32, 2), 0, 8)),
        tx,
        config,
    )
    _, metrics = step(ppo.init(actor.init(key), tx, config), key)
    return metrics.reward
