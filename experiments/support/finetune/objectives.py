"""Losses of fine-tuning on answers and on pairs of them, with what a held-out part says."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.data import tokenization
from proxlm import lm, losses
from proxlm.lm import trainable
from proxlm.policy import losses as policy_losses


def token_losses(params: Any, batch: dict[str, jax.Array], config: lm.ModelConfig) -> jax.Array:
    """Nats of every target, `[B, answers, T]`, 0 where nothing is learnt."""
    flat = lambda name: batch[name].reshape(-1, batch[name].shape[-1])
    targets = batch["targets"]
    packed = {"segments": flat("segments")} if "segments" in batch else {}
    hidden = lm.encode(params, flat("tokens"), config, **packed)
    nats = lm.map_logits(losses.next_token, params, hidden, config, targets.reshape(-1))
    return nats.reshape(targets.shape)


def supervised(trained: Any, batch: dict[str, jax.Array], frozen: Any, config: lm.ModelConfig) -> jax.Array:
    """Mean negative log-likelihood of the answers' tokens, in nats."""
    nats = token_losses(trainable.join(trained, frozen), batch, config)
    return jnp.sum(nats) / jnp.maximum(jnp.sum(batch["targets"] != losses.IGNORED), 1)


def log_probs(trained: Any, batch: dict[str, jax.Array], frozen: Any, config: lm.ModelConfig) -> jax.Array:
    """The log-probability of each answer, `[B, answers]`."""
    return -jnp.sum(token_losses(trainable.join(trained, frozen), batch, config), axis=2)


def preference(
    trained: Any, batch: dict[str, jax.Array], frozen: Any, config: lm.ModelConfig, beta: float
) -> jax.Array:
    """DPO's loss of pairs, against the log-probabilities of the model that training began with."""
    chosen, rejected = log_probs(trained, batch, frozen, config).T
    return jnp.mean(policy_losses.dpo(chosen, rejected, *batch["reference"].T, beta=beta))


def with_reference(
    data: dict[str, np.ndarray], trained: Any, frozen: Any, config: lm.ModelConfig, batch: int
):
    """The data with the log-probabilities of a model that does not change any more, `[N, answers]`."""

    @jax.jit
    def of_all(trained, frozen, pieces):
        return jax.lax.map(lambda piece: log_probs(trained, piece, frozen, config), pieces)

    size = len(data["tokens"])
    padded = jax.tree.map(lambda x: np.pad(x, ((0, -size % batch), (0, 0), (0, 0))), data)
    pieces = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), padded)
    reference = np.asarray(of_all(trained, frozen, pieces)).reshape(-1, data["tokens"].shape[1])
    return data | {"reference": reference[:size]}


def make_evaluate(
    loss: Callable[..., jax.Array], data: dict[str, np.ndarray], frozen: Any, batch: int
) -> Callable[[Any], dict[str, jax.Array]]:
    """`evaluate(trained) -> {"held_out_loss"}`, the mean over as many whole batches as fit."""
    size = len(data["tokens"])
    batch = min(batch, size)
    pieces = jax.tree.map(lambda x: x[: size // batch * batch].reshape(-1, batch, *x.shape[1:]), data)

    @jax.jit
    def mean_loss(trained, frozen, pieces):
        return jnp.mean(jax.lax.map(lambda piece: loss(trained, piece, frozen), pieces))

    return lambda trained: {"held_out_loss": mean_loss(trained, frozen, pieces)}


def make_answer(
    model: lm.Pretrained, frozen: Any, prompts: tuple[np.ndarray, np.ndarray], num_tokens: int
) -> Callable[[Any], list[str]]:
    """`answer(trained) -> texts`: the likeliest answers to the prompts."""
    settings = lm.SamplingConfig(greedy=True, stop_token=model.stops or None)
    draw = functools.partial(lm.sample, config=model.config, num_tokens=num_tokens, sampling=settings)
    tokens, mask = map(jnp.asarray, prompts)
    tokenizer: Any = model.tokenizer

    @jax.jit
    def sample(trained, frozen):
        return draw(jax.random.key(0), trainable.join(trained, frozen), tokens, prompt_mask=mask)

    def answer(trained):
        samples = jax.device_get(sample(trained, frozen))
        return tokenization.decode(tokenizer, samples.tokens[:, tokens.shape[1] :], samples.response_mask)

    return answer
