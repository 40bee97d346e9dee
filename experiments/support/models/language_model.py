"""Language models learnt from windows of text: shape, loss, evaluation, optimizers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from proxlm import lm, losses


def shape(config: Any, size: int, **own: Any) -> lm.ModelConfig:
    """The model, of so many tokens, that the fields of an experiment's config describe, and `own`."""
    names = ("num_layers", "width", "num_heads", "hidden_width")
    fields = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return lm.ModelConfig(size, **fields | own)


def loss(params, windows, config):
    """Mean negative log-likelihood, nats per token, of windows `[B, T + 1]`."""
    hidden = lm.encode(params, windows[:, :-1], config)
    targets = windows[:, 1:].reshape(-1)
    return jnp.mean(lm.map_logits(losses.next_token, params, hidden, config, targets))


def make_evaluate(windows: np.ndarray, config: lm.ModelConfig, batch: int = 64):
    """`evaluate(params) -> {"held_out_loss", "perplexity"}` over as many whole batches as fit."""
    batch = min(batch, len(windows))
    pieces = windows[: len(windows) // batch * batch].reshape(-1, batch, windows.shape[1])

    @jax.jit
    def mean_loss(params, pieces):
        return jnp.mean(jax.lax.map(lambda piece: loss(params, piece, config), pieces))

    def evaluate(params):
        value = mean_loss(params, pieces)
        return {"held_out_loss": value, "perplexity": jnp.exp(value)}

    return evaluate


def muon(learning_rate, adam_learning_rate):
    """Muon for the kernels of the blocks, Adam for embeddings, norms and biases.

    The kernels are stacked and carry their heads as axes, so Muon is told which axes make the
    matrix: those it reads from and those it writes to.
    """
    axes = {
        "qkv/kernel": MuonDimensionNumbers((1,), (2, 3)),
        "out/kernel": MuonDimensionNumbers((1, 2), (3,)),
        "gate_up/kernel": MuonDimensionNumbers((1,), (2, 3)),
        "down/kernel": MuonDimensionNumbers((1,), (2,)),
    }
    name = lambda path: "/".join(entry.key for entry in path[-2:])
    dimensions = functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: axes.get(name(path)))
    return optax.contrib.muon(
        learning_rate,
        adam_learning_rate=adam_learning_rate,
        adam_b2=0.98,
        weight_decay=0.01,
        muon_weight_dimension_numbers=dimensions,
    )


def ramp(peak, steps, warmup=0.05, last=0.0):
    """Learning rate: linear from 0 to the peak in a share of the steps, then a cosine to the end.

    `last` is what is left there, in units of the peak.
    """
    warm = max(1, int(warmup * steps))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warm, steps, last * peak)
