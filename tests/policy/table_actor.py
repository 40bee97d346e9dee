"""An actor whose policy and critic are tables over all histories, so that nothing is slow."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import lm
from tests.arrays import normal

# These tests compile longer than they run, and half as long without LLVM's optimisations.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def num_states(vocab, length):
    """The number of histories that a response of `length` tokens passes through, with the empty one."""
    return sum(vocab**t for t in range(length))


def params(seed, vocab, length, scale=0.7):
    """Random tables: logits [S, V] and values [S], a row for each history."""
    states = num_states(vocab, length)
    logits = scale * normal(seed, (states, vocab))
    return {"policy": {"logits": logits}, "critic": {"values": normal(seed + 1000, (states,))}}


def make(vocab, length, stop_token=None):
    """The actor of these tables; prompts are carried along and change nothing."""

    def sample(key, tree, prompts):
        return walk(tree, jax.random.gumbel(key, (length, prompts.tokens.shape[0], vocab)), prompts)

    def greedy(tree, prompts):
        return walk(tree, jnp.zeros((length, prompts.tokens.shape[0], vocab)), prompts)

    def walk(tree, noise, prompts):
        batch = prompts.tokens.shape[0]
        code, done = jnp.zeros(batch, int), jnp.zeros(batch, bool)
        columns = []
        for t in range(length):
            log_probs = jax.nn.log_softmax(tree["policy"]["logits"][num_states(vocab, t) + code])
            token = jnp.argmax(log_probs + noise[t], axis=1)
            log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
            columns.append((token, jnp.where(done, 0.0, log_prob), ~done))
            done = done | (token == (-1 if stop_token is None else stop_token))
            code = code * vocab + token
        columns = zip(*columns, strict=True)
        tokens, log_probs, mask = (jnp.stack(column, axis=1) for column in columns)
        everything = jnp.concatenate([prompts.tokens, tokens.astype(jnp.int32)], axis=1)
        real = jnp.concatenate([jnp.ones(prompts.tokens.shape, bool), mask], axis=1)
        return lm.Samples(everything, real, log_probs, mask, done)

    def reference(tree, samples, full=False):
        tokens = samples.tokens[:, -length:]
        distribution = jax.nn.log_softmax(tree["policy"]["logits"][states(tokens, vocab)])
        picked = jnp.take_along_axis(distribution, tokens[:, :, None], axis=2)[:, :, 0]
        entropy = -jnp.sum(jnp.exp(distribution) * distribution, axis=2)
        return lm.Scores(picked, entropy, None, distribution if full else None)

    def score(tree, samples, full=False):
        values = tree["critic"]["values"][states(samples.tokens[:, -length:], vocab)]
        return reference(tree, samples, full)._replace(values=values)

    return lm.Actor(lambda key: params(0, vocab, length), sample, score, reference, greedy)


def states(tokens, vocab):
    """The row of the tables before each token, [B, R]: shorter histories come first."""
    code, columns = jnp.zeros(tokens.shape[0], int), []
    for t in range(tokens.shape[1]):
        columns.append(num_states(vocab, t) + code)
        code = code * vocab + tokens[:, t]
    return jnp.stack(columns, axis=1)


def leaking(actor):
    """The same actor, whose scores hold in masked slots what the samples' log_probs hold there.

    So one compiled program can be given clean and poisoned slots, and every bit compared.
    """

    def leak(scores, samples):
        # an addition, for a selection would hold a wrong gradient back on its way to the tables
        extra = jnp.where(samples.response_mask, 0.0, samples.log_probs)
        return jax.tree.map(lambda x: x + (extra if x.ndim == 2 else extra[:, :, None]), scores)

    return actor._replace(
        score=lambda tree, samples, full=False: leak(actor.score(tree, samples, full), samples),
        reference=lambda tree, samples, full=False: leak(actor.reference(tree, samples, full), samples),
    )


@contextlib.contextmanager
def compilations():
    """A list that grows by a name for every program that is compiled inside of the block."""
    found = []
    listen = lambda event, seconds, **about: found.append(about) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_equal(tree, other):
    """Asks for the same bits in every leaf."""
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def assert_close(tree, other, atol):
    """Asks for the same numbers up to `atol` in every leaf."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), tree, other)
