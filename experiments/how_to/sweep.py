"""Seeds times strengths, trained by one program in one vmap. `python -m experiments.how_to.sweep`"""

import jax
import jax.numpy as jnp

import proxlm
from proxlm import penalties, training

STRENGTHS = jnp.array([0.0, 0.01, 0.03, 0.1, 0.3])


def train(key, strength, steps=300):
    """Zeros and error of a linear model of 20 features, 4 of which count."""
    key_x, key_noise, key_w = jax.random.split(key, 3)
    truth = jnp.arange(20) < 4
    x = jax.random.normal(key_x, (50, 20))
    y = x @ truth + 0.5 * jax.random.normal(key_noise, (50,))
    optimizer = proxlm.proximal_adam(0.02, penalties.l1(strength))
    step = training.make_step(lambda w, _: 0.5 * jnp.mean((jnp.dot(x, w) - y) ** 2), optimizer)
    start = training.init(0.1 * jax.random.normal(key_w, (20,)), optimizer)
    state, _ = jax.lax.scan(step, start, jnp.arange(steps))
    return jnp.sum(state.params == 0), jnp.sum(jnp.square(jnp.subtract(state.params, truth)))


def main(seeds=8):
    """Zeros and squared error, `[strengths, seeds]` each."""
    keys = jax.random.split(jax.random.key(0), seeds)
    over_seeds = jax.vmap(train, in_axes=(0, None))
    return jax.jit(jax.vmap(over_seeds, in_axes=(None, 0)))(keys, STRENGTHS)


if __name__ == "__main__":
    for strength, zeros, error in zip(STRENGTHS, *main(), strict=True):
        print(f"strength {strength:.2f}: {zeros.mean():4.1f} zeros, squared error {error.mean():.3f}")
