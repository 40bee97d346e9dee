"""An LSTM encoder-decoder with attention (Luong et al. 2015), as a baseline.

Luong et al. 2015: one LSTM reads the source, another writes the target. At each token the writer's
state h asks the reader's states s by the score h·W·s; what it finds and h give the attentional
state, from which come the next token and, fed back, the writer's next step. Dropout is Gal and
Ghahramani's (2016): one mask a sequence, the same at all of its tokens, on the inputs, the
recurrent states and the output. Source, target and output share one embedding.

Pure functions of a dict of parameters. Sources and targets are filled up with the end token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.support.data import tokenization
from proxlm import losses


class Masks(NamedTuple):
    """Dropout masks of a sequence, scaled to keep the mean; each `[B, D]`."""

    source: jax.Array
    reader: jax.Array
    target: jax.Array
    writer: jax.Array
    output: jax.Array


def init(key: jax.Array, vocab_size: int, width: int) -> dict:
    """Draws the parameters: Glorot's uniform, and biases of 1 where an LSTM decides to forget."""
    keys = jax.random.split(key, 5)
    glorot = jax.nn.initializers.glorot_uniform()
    cell = lambda key, inputs: {
        "kernel": glorot(key, ((inputs + 1) * width, 4 * width)),
        "bias": jnp.zeros(4 * width).at[width : 2 * width].set(1.0),
    }
    return {
        "embedding": 0.1 * jax.random.normal(keys[0], (vocab_size, width)),
        "reader": cell(keys[1], 1),
        "writer": cell(keys[2], 2),
        "score": glorot(keys[3], (width, width)),
        "combine": glorot(keys[4], (2 * width, width)),
    }


def draw_masks(key: jax.Array, batch: int, width: int, rate: float) -> Masks:
    """One mask a sequence for each place: 1/(1 − rate) with probability 1 − rate, else 0."""
    kept = jax.random.bernoulli(key, 1 - rate, (5, batch, width))
    return Masks(*(kept / (1 - rate)))


def no_dropout(batch: int, width: int) -> Masks:
    """Masks that keep everything: for translating."""
    return Masks(*jnp.ones((5, batch, width)))


def read(params: dict, source: jax.Array, masks: Masks):
    """States `[B, S, D]` of the reader at all tokens of sources `[B, S]`, and its last `(h, c)`."""
    x = params["embedding"][source] * masks.source[:, None]
    zeros = jnp.zeros((2, *x[:, 0].shape))

    def body(carry, x):
        carry = _lstm(params["reader"], carry, x, masks.reader)
        return carry, carry[0]

    carry, states = jax.lax.scan(body, (zeros[0], zeros[1]), x.transpose(1, 0, 2))
    return states.transpose(1, 0, 2), carry


def write_token(params: dict, carry, token: jax.Array, memory: jax.Array, masks: Masks):
    """One token `[B]` further: `carry` is `((h, c), attentional)`, and so is what is returned."""
    state, attentional = carry
    x = params["embedding"][token] * masks.target
    state = _lstm(params["writer"], state, jnp.concatenate([x, attentional], 1), masks.writer)
    scores = jnp.einsum("bd,bsd->bs", state[0] @ params["score"], memory)
    found = jnp.einsum("bs,bsd->bd", jax.nn.softmax(scores, axis=1), memory)
    both = jnp.concatenate([found, state[0]], axis=1)
    return state, jnp.tanh(both @ params["combine"]) * masks.output


def loss(params: dict, source: jax.Array, target: jax.Array, mask: jax.Array, masks: Masks):
    """Mean negative log-likelihood, nats per token, of targets `[B, R]` where the mask is True."""
    memory, state = read(params, source, masks)
    before = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=tokenization.END)

    def body(carry, token):
        carry = write_token(params, carry, token, memory, masks)
        return carry, carry[1]

    start = (state, jnp.zeros_like(state[0]))
    _, outputs = jax.lax.scan(body, start, before.T)
    logits = jnp.einsum("rbd,vd->brv", outputs, params["embedding"])
    return jnp.sum(jnp.where(mask, losses.next_token(logits, target), 0.0)) / jnp.sum(mask)


def translate(params: dict, source: jax.Array, num_tokens: int):
    """The likeliest next token again and again, to the end token: `[B, R]` and bool `[B, R]`."""
    masks = no_dropout(len(source), params["embedding"].shape[1])
    memory, state = read(params, source, masks)

    def body(carry, _):
        state, token, done = carry
        state = write_token(params, state, token, memory, masks)
        token = jnp.argmax(state[1] @ params["embedding"].T, axis=1)
        return (state, token, done | (token == tokenization.END)), (token, ~done)

    begin = jnp.full(len(source), tokenization.END)
    start = ((state, jnp.zeros_like(state[0])), begin, jnp.zeros(len(source), bool))
    _, (tokens, mask) = jax.lax.scan(body, start, length=num_tokens)
    return tokens.T, mask.T


def _lstm(params, carry, x, mask):
    """One step of an LSTM whose recurrent state passes a dropout mask: (h, c) -> (h, c)."""
    h, c = carry
    gates = jnp.concatenate([x, h * mask], axis=1) @ params["kernel"] + params["bias"][None]
    enter, forget, new, leave = jnp.split(gates, 4, axis=1)
    c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jax.nn.sigmoid(leave) * jnp.tanh(c), c
