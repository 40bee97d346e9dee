"""Report of `experiments.inspect_lm`: attention, logit lens, and the heads that a penalty keeps."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from experiments.support.models import language_model
from experiments.support.run import runs, tables
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


def write(run, ends, windows, model, alphabet):
    """Writes the report of the pairs of models, one a seed; returns its numbers."""
    looks = [[look(params, windows, model) for params in pair] for pair in ends]
    runs.truncate_log(run, "result", 0)
    for seed, pair in enumerate(looks):
        for name, found in zip(TITLES, pair, strict=True):
            runs.log(
                run,
                "result",
                step=seed,
                model=name,
                loss=found.loss,
                by_layer=found.by_layer,
                heads=found.live_units.heads.sum(axis=1),
                neurons=found.live_units.hidden.sum(axis=1),
                needs=found.needs,
            )
    numbers = numbers_of(looks, [head_sizes(params[0]) for params in ends])
    characters = [shown(c) for c in alphabet.decode(windows[0, :SHOWN])]
    attention = functools.partial(
        plot_attention, tokens=windows[0, :SHOWN], characters=characters, model=model
    )
    figures = {
        "attention.png": lambda path: attention(path, ends[0], looks[0]),
        "lens.png": lambda path: plot_lens(path, ends[0], windows[0, : SHOWN + 1], model, alphabet),
        "survivors.png": lambda path: plot_survivors(path, looks, ends),
    }
    return run.write(numbers, page(looks, numbers, model), figures)


def numbers_of(looks, sizes):
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
        shares = dense.habits[layer, head]
        fate = "kept" if penalised.live_units.heads[layer, head] else "removed"
        heads.append([layer, head, habit(shares), f"{dense.needs[layer, head]:+.3f}", fate])
    rows = [[name, tables.mean_spread(values, 3)] for name, values in numbers.items()]
    return [
        "Held-out loss, nats per character, if the model stopped at a layer (logit lens):",
        tables.table(layers, ["", "dense", "penalised"]),
        "Heads of the first dense model: where most of their attention goes, by how much the loss\n"
        "rises without them, and what became of them under the penalty:",
        tables.table(heads, ["layer", "head", "looks at", "needed", "under the penalty"]),
        tables.table(rows, ["all seeds", ""]),
    ]


def habit(shares) -> str:
    """The habit that takes most of a head's attention, if it takes a fair share."""
    return f"{HABITS[shares.argmax()]} {shares.max():.0%}" if shares.max() >= 0.15 else "spread out"


def plot_attention(path, pair, looks, tokens, characters, model):
    """Draws attention maps: a panel a head, the dense model above the penalised one."""
    inspect = jax.jit(functools.partial(lm.inspect, config=model))
    seen = [np.asarray(inspect(params, tokens[None]).attention[:, 0]) for params in pair]
    depth, heads = model.num_layers, model.num_heads
    size = (1.7 * heads + 1.0, 2.0 * 2 * depth)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2 * depth, heads, squeeze=False)
    for model_index, layer, head in np.ndindex(2, depth, heads):
        axis = axes[model_index * depth + layer, head]
        kept = looks[model_index].live_units.heads[layer, head]
        axis.set_xticks([])
        axis.set_yticks([])
        if head == 0:
            axis.set_ylabel(f"{TITLES[model_index]}\nlayer {layer}", fontsize=9)
        if not kept:
            axis.text(0.5, 0.5, "removed", ha="center", va="center", color="#999999")
            axis.set_xlim(0, 1)
            continue
        axis.imshow(seen[model_index][layer, head], cmap="Blues", vmin=0, vmax=1)
        shares = looks[model_index].habits[layer, head]
        axis.set_title(habit(shares), fontsize=8)
    for axis in (axes[0, 0], axes[depth, 0]):
        axis.set_yticks(range(len(characters)), characters, fontsize=5)
    figure.suptitle(
        "Attention on held-out text: from each character (row) to those before it (column); above "
        "a head\nwhere most of its attention goes on average",
        fontsize=10,
    )
    figure.savefig(path, dpi=150, format="png")


def plot_lens(path, pair, window, model, alphabet):
    """Draws the logit lens: the likeliest character by layer, and the probability of the true one."""
    figure = matplotlib.figure.Figure(figsize=(11.0, 4.6), layout="constrained")
    visible = [shown(c) for c in alphabet.alphabet]
    names = names_of(model)
    for axis, params, title in zip(figure.subplots(2, 1), pair, TITLES, strict=True):
        seen = lm.inspect(params, window[None, :-1], model)
        said = np.asarray(jax.nn.softmax(lm.logit_lens(params, seen.residual[:, 0], model)))
        truth = said[:, np.arange(len(window) - 1), window[1:]]
        image = axis.imshow(truth, cmap="Greens", vmin=0, vmax=1, aspect="auto", origin="lower")
        for layer, place in np.ndindex(truth.shape):
            dark = truth[layer, place] > 0.5
            axis.text(
                place,
                layer,
                visible[said[layer, place].argmax()],
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=9,
            )
        axis.set_yticks(range(len(names)), names, fontsize=8)
        labels = [f"{visible[a]}\n→{visible[b]}" for a, b in itertools.pairwise(window)]
        axis.set_xticks(range(len(labels)), labels, fontsize=7)
        axis.set_title(f"{title}: the likeliest next character by layer", loc="left", fontsize=10)
    figure.colorbar(image, ax=figure.axes, label="probability of the true one")
    figure.savefig(path, dpi=150, format="png")


def plot_survivors(path, looks, ends):
    """Left: was a removed head one that the dense model needed? Right: neurons left by layer."""
    figure = matplotlib.figure.Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {True: "#1f4e79", False: "#c8553d"}
    needs = np.concatenate([pair[0].needs.ravel() for pair in looks])
    kept = np.concatenate([pair[1].live_units.heads.ravel() for pair in looks])
    sizes = np.concatenate([head_sizes(params[0]).ravel() for params in ends])
    for alive in (True, False):
        label = "kept under the penalty" if alive else "removed"
        chosen = kept == alive
        left.scatter(sizes[chosen], needs[chosen], s=18, color=colours[alive], label=label)
    left.set_xlabel("size of the head's weights, root mean square", fontsize=9)
    left.set_ylabel("rise of the loss without it, nats", fontsize=9)
    left.set_title("heads of the dense models", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    hidden = np.array([pair[1].live_units.hidden.sum(axis=1) for pair in looks])
    total = looks[0][1].live_units.hidden.shape[1]
    places = np.arange(hidden.shape[1])
    right.barh(places, [total] * len(places), color="#e4e4e4")
    right.barh(places, hidden.mean(axis=0), color=colours[True])
    for place in places:
        right.plot(hidden[:, place], [place] * len(hidden), "o", color="black", markersize=3)
    right.set_yticks(places, [f"layer {i}" for i in places])
    right.set_title("MLP neurons kept, of all (grey); a dot a seed", loc="left", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=150, format="png")


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
