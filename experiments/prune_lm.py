"""Neurons and heads cut out of SmolLM2: a group penalty ties with activations, then loses; magnitude fails.

    python -m experiments.prune_lm               # make more-data before
    python -m experiments.prune_lm --smoke

Every method sees the same 4,096 tokens of film reviews, removes as many units of each layer, and refits
the kernels behind what is left by least squares on them. 2 CPU cores (Intel Xeon with AVX-512, one of
them used, among four other jobs), 9½ minutes of CPU time; perplexity on the beginnings of 16 reviews held
out, 49.2 of the whole model, ± the standard deviation over n=3 draws of the text:

    removed                                 group lasso    activation    magnitude
    20 % of the neurons                      63.0 ± 0.9     63.5 ± 0.7     651 ± 46
    40 %, and one query head of each three  151.9 ± 4.9    105.3 ± 4.0    1945 ± 255

What the penalty chooses is a little better for a fifth of the neurons, on each draw by 0.3 to 0.9, and
what activations choose is better beyond, above all for heads: there the refit leaves 7.2 % of the squares
of what a layer adds, after the penalty's choice 9.7 %, after magnitude's 15.1 %. Cut out, the model has
96.0 M of 134.5 M parameters, and decodes in 57.1 CPU ms a token in place of 64.8; transformers 5 opens it
with the same logits to 3e-5 of the largest. Ridge and penalty were chosen on other reviews, by six
layers' errors.
"""

import dataclasses
import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.data import corpora, tokenization
from experiments.support.models import language_model, pretrained
from experiments.support.prune_lm import activations, layers, report
from experiments.support.run import cached_results, cli, configs, runs
from proxlm import _validation, lm, penalties

# Of the norms of units; a minimax concave penalty leaves those of three thresholds and more alone.
PENALTIES = {
    "group lasso": lambda strength, _: penalties.group_lasso(strength, axis=(1, 2), weight="none"),
    "group MCP": lambda strength, step_size: penalties.group_mcp(
        strength, 3.0 * step_size, axis=(1, 2), weight="none"
    ),
}
METHODS = (*PENALTIES, "activation", "magnitude")


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    # a folder of transformers, a GGUF file, hf:organisation/name or smollm2
    model: str = configs.field(pretrained.SMOLLM2, smoke=pretrained.UNTRAINED)
    neurons: tuple[float, ...] = (0.2, 0.4)  # shares of the MLP neurons to remove
    heads: tuple[int, ...] = (0, 1)  # query heads to remove of each key-value head, beside them
    methods: tuple[str, ...] = ("group lasso", "activation", "magnitude")  # or group MCP
    ridge: float = 1.0  # of penalties and refits, in units of the activations' squares
    steps: int = configs.field(15, smoke=3)  # of the proximal gradient method
    window: int = configs.field(128, smoke=16)  # tokens of a text
    texts: int = configs.field(32, smoke=4)  # windows to prune by
    judged: int = configs.field(16, smoke=4)  # windows held out
    seeds: int = configs.field(3, smoke=1)  # draws of the windows to prune by
    seed: int = 0  # the first
    tokens: int = configs.field(32, smoke=4)  # of the decoding that is timed

    def validate(self) -> None:
        configs.check_choices(self, methods=METHODS)
        _validation.within(0, 1, neurons=max(self.neurons))
        if len(self.heads) != len(self.neurons):
            raise _validation.invalid("heads", self.heads, f"one for each of {len(self.neurons)} shares")


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Prunes by every method, judges, cuts one model out; returns the numbers of the report."""
    train, held_out = corpora.split(corpora.movie_reviews(run.data), 0)
    texts = [review.text for review in train]
    model = pretrained.load(config.model, run.data, texts[:100], config.window)
    judged = windows(model, [review.text for review in held_out], config.judged, config, seed=0)
    evaluate = language_model.make_evaluate(judged, model.config, batch=min(8, config.judged))
    dense = cached_results.compute_once(run, "dense", lambda: evaluate(model.params))
    found: dict[tuple, list] = {}
    grams = functools.lru_cache(1)(lambda seed: grams_of(model, texts, config, seed))
    seeds = range(config.seed, config.seed + config.seeds)
    levels = zip(config.neurons, config.heads, strict=True)
    for seed, level, method in itertools.product(seeds, levels, config.methods):
        own = functools.partial(grams, seed)
        compute = functools.partial(of_lane, config, model, own, level, method, evaluate)
        name = f"{seed} {method} {level[0]:g} {level[1]}"
        began, done = time.process_time(), cached_results.path_of(run, name).exists()
        result = cached_results.compute_once(run, name, compute)
        found.setdefault((level, method), []).append(result)
        if not done:
            seconds, perplexity = time.process_time() - began, result["perplexity"]
            runs.log(run, name, step=seed, perplexity=perplexity, seconds=seconds)
            print(f"{name}: perplexity {float(perplexity):.2f}, {seconds:.0f} CPU s", flush=True)
    best = min(found, key=lambda lane: (-lane[0][0], np.mean([r["perplexity"] for r in found[lane]])))
    own = functools.partial(grams, config.seed)
    small = report.cut_out(run, model, pruned(config, model, own, *best)[0], judged[:1, :-1], config.tokens)
    return report.write(run, dense, found, best, small)


def windows(model: lm.Pretrained, texts, count: int, config: Config, seed: int) -> np.ndarray:
    """The beginnings of texts of so many tokens, drawn by the seed: `[count, window + 1]`."""
    tokenizer: Any = model.tokenizer
    order = np.random.default_rng(seed).permutation(len(texts))[: 4 * count]
    rows = [
        row.ids[: config.window + 1]
        for row in tokenizer.encode_batch(
            [tokenization.tidy(texts[i]) for i in order], add_special_tokens=False
        )
    ]
    return np.array([row for row in rows if len(row) == config.window + 1][:count], np.int32)


def grams_of(model: lm.Pretrained, texts, config: Config, seed: int) -> activations.Grams:
    """Second moments of activations on the text that a seed prunes by."""
    rows = windows(model, texts, config.texts, config, seed + 1)[:, :-1]
    return activations.grams(model.params, rows, model.config, batch=min(4, config.texts))


def of_lane(config: Config, model: lm.Pretrained, grams, level, method: str, evaluate) -> dict[str, Any]:
    """Held-out perplexity of a pruned model, and the errors of its layers on the text."""
    params, errors = pruned(config, model, grams, level, method)
    return evaluate(params) | {"errors": errors}


def pruned(config: Config, model: lm.Pretrained, grams, level, method: str):
    """The model with zeros in place of the units that a method removes, and the errors of its layers."""
    share, heads = level
    blocks, shape = model.params["blocks"], model.config
    count = shape.hidden_width - round(share * shape.hidden_width)
    served = shape.num_heads // shape.num_kv_heads
    own = {"method": method, "steps": config.steps, "ridge": config.ridge}
    down, errors = prune_neurons(blocks["mlp"], grams().neurons, count=count, **own)
    out = blocks["attention"]["out"]["kernel"]
    if heads:
        left = max(1, served - heads)
        out, more = prune_heads(out, grams().heads, pools=shape.num_kv_heads, count=left, **own)
        errors = jnp.stack([errors, more])
    mlp = blocks["mlp"] | {"down": blocks["mlp"]["down"] | {"kernel": down}}
    attention = blocks["attention"] | {"out": blocks["attention"]["out"] | {"kernel": out}}
    return {**model.params, "blocks": {**blocks, "mlp": mlp, "attention": attention}}, errors


@functools.partial(jax.jit, static_argnames=("count", "method", "steps"))
def prune_neurons(mlp, grams, *, count: int, method: str, steps: int, ridge: float):
    """`down` with zeros, `[L, F, D]`, and the errors of the layers."""
    squares = lambda kernel, axes: jnp.sum(jnp.square(kernel), axis=axes)
    gate_up, down = mlp["gate_up"]["kernel"], mlp["down"]["kernel"]
    sizes = jnp.sqrt(squares(gate_up, (1, 2)) + squares(down, 2))  # of a neuron, all its weights
    return prune(grams, down[:, None, :, None], sizes[:, None], down.shape, count, method, steps, ridge)


@functools.partial(jax.jit, static_argnames=("pools", "count", "method", "steps"))
def prune_heads(out, grams, *, pools: int, count: int, method: str, steps: int, ridge: float):
    """`out` with zeros, `[L, H, d, D]`, and the errors of the layers."""
    kernels = out.reshape(len(out), pools, -1, *out.shape[2:])
    sizes = jnp.sqrt(jnp.sum(jnp.square(kernels), axis=(3, 4)))
    return prune(grams, kernels, sizes, out.shape, count, method, steps, ridge)


def prune(grams, kernels, sizes, shape, count, method, steps, ridge):
    """Keeps so many units of each pool of every layer and refits."""

    def of_layer(layer):
        gram, kernel, size = layer
        if method in PENALTIES:
            scores = layers.by_penalty(gram, kernel, count, steps, PENALTIES[method], ridge)
        else:
            scores = layers.by_activation(gram, kernel) if method == "activation" else size
        new = layers.refit(gram, kernel, layers.largest(scores, count), ridge)
        return new, layers.error(gram, kernel, new)

    new, errors = jax.lax.map(of_layer, (grams, kernels, sizes))
    return new.reshape(shape), errors


if __name__ == "__main__":
    cli.run(main)
