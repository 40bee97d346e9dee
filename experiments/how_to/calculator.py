"""Products by a tool between two turns: imitation, then GRPO. `python -m experiments.how_to.calculator`

A model of 25,664 weights is shown 64 calls, 80 times, and then rewarded for right digits. Wholly right are
of 1,000 products of two-digit numbers, three seeds each, before -> after the 200 iterations of GRPO:

    with the calculator                                  61, 99, 43 % -> 99.9, 100, 100 %
    without: the same, but the calculator says nothing   0.9, 0.6, 0.6 % -> 0.2, 0.2, 0.0 %

(2 CPU cores, Intel Xeon; 176 CPU s for both, compilation included, n=3 seeds.)
"""

import jax
import jax.numpy as jnp
import optax

from proxlm import lm
from proxlm.policy import ppo, recipes

CALL, ANSWER, NOTHING = 10, 11, 12  # tokens after the digits 0 to 9


def product(factors):
    tens, ones = factors[:, ::2], factors[:, 1::2]
    return jnp.prod(10 * tens + ones, axis=1)[:, None] // jnp.array([[1000, 100, 10, 1]]) % 10


def main(has_tool=True, seeds=3, warm_up=80, iterations=200):
    def calculator(turn, samples):
        called = has_tool & (turn.tokens[:, :1] == CALL)
        return lm.Prompts(jnp.where(called, product(turn.tokens[:, 1:]), NOTHING))

    model = lm.ModelConfig(vocab_size=13, num_layers=2, width=32, num_heads=4)
    actor = lm.make_actor(model, num_tokens=5, critic=False, turns=lm.Turns(calculator, num_outputs=4))
    greedy = actor.greedy
    assert greedy is not None
    config = recipes.make("dr_grpo", group_size=8, kl=None, num_epochs=1, num_minibatches=2)
    ask = lambda key, number=32: lm.Prompts(jax.random.randint(key, (number, 4), 1, 10))
    right = lambda rows: jnp.mean(rows.tokens[:, -4:] == product(rows.tokens[:, :4]), axis=1)
    teacher, optimizer = optax.adam(3e-3), optax.adam(1e-3)
    step = ppo.make_step(actor, right, ask, optimizer, config)

    asked = ask(jax.random.key(1), 64).tokens
    call, answer = (jnp.pad(asked, ((0, 0), (1, 0)), constant_values=kind) for kind in (CALL, ANSWER))
    answer = answer.at[:, 1:].set(product(asked))
    tokens = jnp.concatenate([asked, call, calculator(lm.Prompts(call), None).tokens, answer], axis=1)
    mask = jnp.ones((64, 14), bool).at[:, 5:9].set(False)
    shown = lm.Samples(tokens, tokens >= 0, mask * 0.0, mask, mask[:, 0])

    def imitate(carry, _):
        loss = lambda params: -jnp.mean(actor.score(params, shown).log_probs, where=mask)
        updates, state = teacher.update(jax.grad(loss)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    def train(key):
        params, keys = actor.init(key), jax.random.split(key, iterations)
        warm = jax.lax.scan(imitate, (params, teacher.init(params)), None, warm_up)[0][0]
        final = jax.lax.scan(step, ppo.init(warm, optimizer, config), keys)[0].params
        test = ask(jax.random.key(2), 1000)
        return jnp.stack([jnp.mean(right(greedy(params, test)) == 1) for params in (warm, final)])

    return jax.jit(jax.vmap(train))(jax.vmap(jax.random.key)(jnp.arange(seeds)))


if __name__ == "__main__":
    for has_tool in (True, False):
        print("right", "with" if has_tool else "without", "a calculator, before and after", main(has_tool))
