"""A pretrained model's first layers, the last of them fine-tuned to tell classes of texts, packed in rows."""

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.models import language_model, pretrained, smollm
from experiments.support.run import supervised
from experiments.support.text_classification import datasets, smollm_features
from proxlm import lm
from proxlm.lm import trainable

NONE = -1  # the label of a place in a row that holds no text
OPEN = 64  # rows that are filled at a time
SHORTEST = 64  # tokens of a row at least
STEP = 768  # tokens of a step
HEAD = 10.0  # times the rate of the layers
CHUNKS = 10  # of the fit
WATCHED = 512  # validation texts that are judged while it goes on


class Scores(NamedTuple):
    """Scores `[N, K]` of the validation and held-out texts, and how many weights were trained."""

    validation: np.ndarray
    held_out: np.ndarray
    trained: int


def scores_of(run, task, config) -> Scores:
    """Fine-tunes the model on a task and judges its texts.

    Args:
        run: of the experiment; a fit that was killed goes on from its last checkpoint.
        task: a `methods.Task`.
        config: of the experiment.
    """
    longest = task.plan.read
    model = pretrained.load(config.tuned_model, run.data, task.train.texts, longest)
    length = max(longest, SHORTEST)
    start, shape = smollm.first_layers(model, config.tuned_depth, length)
    shape = dataclasses.replace(shape, compute_dtype="bfloat16", matmul_precision=None)
    layers, frozen = trainable.split(start, [trainable.last_layers(config.tuned_layers), "^norm/"])
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
    read = lambda part: smollm_features.tokens(model, part.texts, longest)
    train, *others = map(read, task.parts)
    order = np.random.default_rng(config.seed).permutation(len(train))
    data = pack(train, length, order, task.train.labels)
    data = {name: x for name, x in data.items() if name != "index"}
    rows = rows_of(len(data["tokens"]), length, config)
    judged = functools.partial(judge, frozen=frozen, config=shape, length=length)
    watched = datasets.Texts(task.validation.texts[:WATCHED], task.validation.labels[:WATCHED])
    right = lambda scores: np.mean(scores.argmax(axis=1) == watched.labels)
    found = supervised.fit(
        run,
        f"{task.name}, fine-tuned",
        functools.partial(loss, config=shape),
        chain(config, len(rows)),
        {"lm": layers, "head": init_head(shape.width, task.num_classes)},
        data,
        rows,
        chunk=len(rows) // CHUNKS,
        evaluate_every=2,
        evaluate=lambda params: {"accuracy": right(judged(params, others[0][:WATCHED]))},
        fixed={"frozen": frozen},
    ).params
    count = sum(leaf.size for leaf in jax.tree.leaves(found))
    validation, held_out = (judged(found, part) for part in others)
    return Scores(validation, held_out, count)


def rows_of(size: int, length: int, config) -> np.ndarray:
    """Row numbers `[steps, batch]` of so many epochs, rounded to whole chunks."""
    batch = min(max(1, STEP // length), size)
    chunks = max(1, round(config.tuned_epochs * size / batch / CHUNKS))
    return supervised.epochs(config.seed, size, batch, chunks * CHUNKS)


def chain(config, steps: int) -> optax.GradientTransformation:
    """AdamW, at a higher rate for the head, which starts from nothing."""
    adam = lambda rate: optax.adamw(
        language_model.ramp(rate, steps, warmup=0.1), b2=0.98, weight_decay=config.tuned_decay
    )
    rates: dict[Hashable, optax.GradientTransformation] = {
        "lm": adam(config.tuned_rate),
        "head": adam(HEAD * config.tuned_rate),
    }
    by_part = optax.multi_transform(rates, {part: part for part in rates})
    return optax.chain(optax.clip_by_global_norm(1.0), by_part)


def init_head(width: int, num_classes: int) -> dict[str, jax.Array]:
    """A head that knows no class, on the mean and the last of a text's states."""
    return {"kernel": jnp.zeros((2 * width, num_classes)), "bias": jnp.zeros(num_classes)}


def pack(
    texts: Sequence[Sequence[int]], length: int, order: Iterable[int], labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Puts texts, in this order, into the first of a few open rows that has room.

    Returns:
        tokens, segments: `[R, length]`; the texts of a row are its segments 1, 2 and so on, 0 is padding.
        index, label: `[R, S]`, the number and label of the text in each segment; NONE where there is none.

    >>> pack([[5, 6], [7, 8, 9], [4]], 4, [0, 1, 2])["tokens"].tolist()
    [[5, 6, 4, 0], [7, 8, 9, 0]]
    """
    rows, room, open_rows = [], [], []
    for i in order:
        size = len(texts[i])
        if size > length:
            raise ValueError(f"length={length}: expected at least {size}, the tokens of text {i}")
        at = next((row for row in open_rows if room[row] >= size), len(rows))
        if at == len(rows):
            rows, room, open_rows = [*rows, []], [*room, length], [*open_rows, at][-OPEN:]
        rows[at].append(i)
        room[at] -= size
    most = max(map(len, rows))
    result = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "segments")}
    result |= {name: np.full((len(rows), most), NONE, np.int32) for name in ("index", "label")}
    for row, members in enumerate(rows):
        ends = np.cumsum([len(texts[i]) for i in members])
        for place, (i, end) in enumerate(zip(members, ends, strict=True)):
            result["tokens"][row, end - len(texts[i]) : end] = texts[i]
            result["segments"][row, end - len(texts[i]) : end] = place + 1
            result["index"][row, place] = i
            result["label"][row, place] = 0 if labels is None else labels[i]
    return result


def logits(params: Any, batch: Mapping[str, Any], frozen: Any, config: lm.ModelConfig) -> jax.Array:
    """Scores `[R, S, K]` of packed texts; those of places without a text mean nothing."""
    tokens, segments = batch["tokens"], batch["segments"]
    states = lm.encode(trainable.join(params["lm"], frozen), tokens, config, segments=segments)
    states = states.astype(jnp.float32).reshape(*tokens.shape, -1)
    places = 1 + jnp.arange(batch["label"].shape[1])
    own = (segments[:, None] == places[None, :, None]).astype(jnp.float32)  # [R, S, T]
    is_last = own * (1 - jnp.pad(own[:, :, 1:], ((0, 0), (0, 0), (0, 1))))
    mean = own / jnp.maximum(jnp.sum(own, axis=2, keepdims=True), 1)
    parts = [jnp.einsum("rst,rtd->rsd", weights, states) for weights in (mean, is_last)]
    features = jnp.concatenate(parts, axis=2)
    power = jnp.mean(jnp.square(features), axis=2, keepdims=True)
    head = params["head"]
    return features * jax.lax.rsqrt(power + 1e-6) @ head["kernel"] + head["bias"][None, None]


def loss(params: Any, batch: Mapping[str, Any], frozen: Any, config: lm.ModelConfig) -> jax.Array:
    """Mean cross-entropy, nats per text."""
    label = batch["label"]
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch, frozen, config), jnp.maximum(label, 0)
    )
    return jnp.sum(each * (label != NONE)) / jnp.sum(label != NONE)


def judge(
    params: Any, texts: Sequence[Sequence[int]], frozen: Any, config: lm.ModelConfig, length: int
) -> np.ndarray:
    """Scores `[N, K]` of texts."""
    data = pack(texts, length, range(len(texts)))
    size, batch = len(data["tokens"]), max(1, STEP // length)
    result = np.empty((len(texts), len(params["head"]["bias"])), np.float32)
    for rows in np.resize(np.arange(size), (-(-size // batch), batch)):  # the last one goes round
        part = {name: x[rows] for name, x in data.items()}
        found = jitted_logits(params, part, frozen, config)
        there = part["index"] != NONE
        result[part["index"][there]] = np.asarray(found)[there]
    return result


jitted_logits = jax.jit(logits, static_argnames="config")
