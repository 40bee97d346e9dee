"""Report of `experiments.inspect_lm`: attention, logit lens, and the heads that a penalty keeps."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import language_model, small_lm
from experiments.support.run import plot_panels, plots, tables
from proxlm import lm

SHOWN = 24  # characters of the text in the plots
TITLES = ("dense", "penalised")
HABITS = ("itself", "one before", "the first", "same earlier", "after same")


class Look(NamedTuple):
    """Measurements of one model on held-out windows."""

    loss: float
    by_layer: np.ndarray  # [L + 1] loss where the model would stop
    habits: np.ndarray  # [L, H, 5]
    needs: np.ndarray  # [L, H] rise of the loss without a head
    live_units: lm.LiveUnits


def habits(attention, tokens):
    """Shares of attention `[..., B, H, T, T]` that fall on certain keys: `[..., H, 5]`.

    The query itself, the token before it, the first of all, earlier copies of the query's token,
    and tokens that follow such copies. A key may count twice. A mean over rows and queries from
    the second half of the window, where there is something to look back at.
    """
    length = tokens.shape[1]
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None]
    same = tokens[:, :, None] == tokens[:, None, :]
    after = jnp.pad(same, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    earlier = (key < query)[None]
    places = [(query == key)[None], (query == key + 1)[None], (key == 0)[None]]
    places = [jnp.broadcast_to(place, same.shape) for place in places]
    masks = jnp.stack([*places, same & earlier, after & (key <= query)[None]])
    late = attention[..., length // 2 :, :]
    shares = jnp.einsum("...bhqk,mbqk->...hmbq", late, masks[:, :, length // 2 :].astype(float))
    return jnp.mean(shares, axis=(-1, -2))


def without_head(params, layer, head):
    """The same params, but the head writes nothing."""
    attention = params["blocks"]["attention"]
    kernel = attention["out"]["kernel"].at[layer, head].set(0.0)
    changed = {**attention, "out": {"kernel": kernel}}
    return {**params, "blocks": {**params["blocks"], "attention": changed}}


def look(params, windows, model: lm.ModelConfig) -> Look:
    """Measures a model on windows `[B, T + 1]`."""
    loss = functools.partial(language_model.loss, windows=jnp.asarray(windows), config=model)
    pairs = jnp.stack(jnp.divmod(jnp.arange(model.num_layers * model.num_heads), model.num_heads))

    @jax.jit
    def measure(params):
        tokens, targets = windows[:, :-1], windows[:, 1:]
        seen = lm.inspect(params, tokens, model)
        said = jax.nn.log_softmax(lm.logit_lens(params, seen.residual, model))
        chosen = jnp.take_along_axis(said, jnp.asarray(targets)[None, ..., None], axis=-1)
        whole = loss(params)
        rises = jax.lax.map(lambda pair: loss(without_head(params, *pair)) - whole, pairs.T)
        return whole, -jnp.mean(chosen, axis=(1, 2, 3)), habits(seen.attention, tokens), rises

    whole, by_layer, shares, rises = jax.device_get(measure(params))
    rises = rises.reshape(model.num_layers, model.num_heads)
    return Look(float(whole), by_layer, shares, rises, lm.live_units(params, model))


def write(run, ends, plays: small_lm.Setup):
    """Writes the report of the pairs of models, one a seed; returns its numbers."""
    model, window = plays.model, plays.held_out[0, : SHOWN + 1]
    looks = [[look(params, plays.held_out, model) for params in pair] for pair in ends]
    sizes = [head_sizes(params[0]) for params in ends]
    numbers = numbers_of(looks, sizes)
    models = {
        f"{name} {seed}": {
            "by_layer": found.by_layer,
            "heads": found.live_units.heads.sum(axis=1),
            "neurons": found.live_units.hidden.sum(axis=1),
            "needs": found.needs,
        }
        for seed, pair in enumerate(looks)
        for name, found in zip(TITLES, pair, strict=True)
    }
    visible = [shown(c) for c in plays.alphabet.alphabet]
    figures = {
        "attention": draw_attention(ends[0], looks[0], window[:-1], visible, model),
        "lens": draw_lens(ends[0], window, visible, model),
        "survivors": draw_survivors(looks, sizes),
    }
    return run.write(numbers | {"models": models}, page(looks, numbers, model), figures)


def numbers_of(looks, sizes) -> dict[str, list[float]]:
    """Name ↦ one number a seed; a cut by size alone would keep "as many largest" heads."""
    kept = lambda name: [float(getattr(pair[1].live_units, name).mean()) for pair in looks]
    alive = lambda pair: pair[1].live_units.heads
    mean = lambda values: float(values.mean()) if values.size else float("nan")
    rank = lambda size: np.argsort(np.argsort(-size, axis=None)).reshape(size.shape)
    return {
        "dense loss": [pair[0].loss for pair in looks],
        "penalised loss": [pair[1].loss for pair in looks],
        "heads kept": kept("heads"),
        "neurons kept": kept("hidden"),
        "needed by dense, kept": [mean(pair[0].needs[alive(pair)]) for pair in looks],
        "needed by dense, removed": [mean(pair[0].needs[~alive(pair)]) for pair in looks],
        "needed by dense, as many largest": [
            mean(pair[0].needs[rank(size) < alive(pair).sum()])
            for pair, size in zip(looks, sizes, strict=True)
        ],
    }


def page(looks, numbers, model) -> list[str]:
    """The paragraphs of the report: layers and heads of the first seed, and all seeds in sum."""
    at = lambda i, layer: tables.mean_spread([pair[i].by_layer[layer] for pair in looks], 2)
    layers = [[name, at(0, i), at(1, i)] for i, name in enumerate(names_of(model))]
    (dense, penalised), heads = looks[0], []
    for layer, head in np.ndindex(dense.needs.shape):
        fate = "kept" if penalised.live_units.heads[layer, head] else "removed"
        shares, need = dense.habits[layer, head], dense.needs[layer, head]
        heads.append([layer, head, habit(shares), f"{need:+.3f}", fate])
    rows = [[name, tables.mean_spread(values, 3)] for name, values in numbers.items()]
    return [
        "Held-out loss, nats per character, if the model stopped at a layer (logit lens):",
        tables.table(layers, ["", *TITLES]),
        "Heads of the first dense model: where most of their attention goes, by how much the loss\n"
        "rises without them, and what became of them under the penalty:",
        tables.table(heads, ["layer", "head", "looks at", "needed", "under the penalty"]),
        tables.table(rows, ["all seeds", ""]),
    ]


def habit(shares) -> str:
    """The habit that takes most of a head's attention, if it takes a fair share."""
    return f"{HABITS[shares.argmax()]} {shares.max():.0%}" if shares.max() >= 0.15 else "spread out"


def draw_attention(pair, looks, tokens, visible, model):
    """Attention maps: a panel a head, the dense model above the penalised one."""
    inspect = jax.jit(functools.partial(lm.inspect, config=model))
    letters = [visible[token] for token in tokens]

    def panel(attention, kept):
        def draw(axis):
            axis.imshow(attention if kept else np.zeros_like(attention), cmap="Blues", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks(range(len(letters)), letters, fontsize=5)

        return draw

    drawings = {}
    for name, params, found in zip(TITLES, pair, looks, strict=True):
        seen = np.asarray(inspect(params, tokens[None]).attention[:, 0])
        for layer, head in np.ndindex(found.needs.shape):
            kept = found.live_units.heads[layer, head]
            told = habit(found.habits[layer, head]) if kept else "removed"
            drawings[f"{name} {layer}.{head}: {told}"] = panel(seen[layer, head], kept)
    note = (
        "Attention on held-out text, from each character (row) to those before it (column), by layer "
        "and head; above it, where most goes on average"
    )
    return plots.panels(drawings, model.num_heads, (2.2, 2.4), note)


def draw_lens(pair, window, visible, model):
    """The logit lens: the likeliest character by layer, and the probability of the true one."""
    names = names_of(model)
    labels = [f"{visible[a]}\n→{visible[b]}" for a, b in itertools.pairwise(window)]

    def panel(params):
        seen = lm.inspect(params, window[None, :-1], model)
        said = np.asarray(jax.nn.softmax(lm.logit_lens(params, seen.residual[:, 0], model)))
        truth = said[:, np.arange(len(window) - 1), window[1:]]
        likeliest = np.vectorize(visible.__getitem__, otypes=[str])(said.argmax(axis=-1))
        return plot_panels.heatmap(truth, names, labels, likeliest, unit="probability of the true one")

    title = "{}: the likeliest next character by layer"
    drawings = {title.format(name): panel(params) for name, params in zip(TITLES, pair, strict=True)}
    return plots.panels(drawings, 1, (11.0, 2.3))


def draw_survivors(looks, sizes):
    """Left: was a removed head one that the dense model needed? Right: neurons left by layer."""
    needs = np.concatenate([pair[0].needs.ravel() for pair in looks])
    kept = np.concatenate([pair[1].live_units.heads.ravel() for pair in looks])
    heads = np.stack([np.concatenate([size.ravel() for size in sizes]), needs], axis=1)
    groups = {"kept under the penalty": heads[kept], "removed": heads[~kept]}
    hidden = np.array([pair[1].live_units.hidden.mean(axis=1) for pair in looks])

    def draw(axis):
        places = np.arange(hidden.shape[1])
        axis.barh(places, hidden.mean(axis=0), color=plot_panels.COLOURS[0])
        axis.plot(hidden, np.broadcast_to(places, hidden.shape), "o", color="black", markersize=3)
        axis.set_yticks(places, [f"layer {i}" for i in places])
        axis.set_xlim(0, 1)

    points = plot_panels.points(groups, "root mean square of a head's weights", "rise of the loss, nats")
    drawings = {"the dense models without a head": points, "share of MLP neurons kept; a dot a seed": draw}
    return plots.panels(drawings)


def head_sizes(params) -> np.ndarray:
    """Root mean square of the weights of each head, `[L, H]`."""
    attention = params["blocks"]["attention"]
    qkv, out = (np.asarray(attention[name]["kernel"]) for name in ("qkv", "out"))
    depth, width, packed, size = qkv.shape
    squares = np.square(qkv).reshape(depth, width, 3, packed // 3, size).sum(axis=(1, 2, 4))
    squares += np.square(out).sum(axis=(2, 3))
    return np.sqrt(squares / (4 * width * size))


def names_of(model) -> list[str]:
    """The places where the residual stream is looked at."""
    return ["embedding", *(f"layer {i}" for i in range(model.num_layers))]


def shown(character: str) -> str:
    """A character that can be seen."""
    return {" ": "␣", "\n": "↵"}.get(character, character)
