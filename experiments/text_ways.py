"""The ways in which `text_classification` learns to tell texts apart."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import fitting, labelled, language_model, runs, smollm_states, word_pairs
from experiments import text_classifier as classifier
from proxlm import apply_prox, lm, penalties, solvers

BEFORE = 0.02  # standard deviation of an embedding that has learnt nothing


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a corpus is read and how long it is learnt."""

    length: int  # words of a training text
    steps: int
    batch: int
    least: int  # texts a word has to be in
    drop: float = 0.3  # share of the words of a training text left out
    least_pairs: int = 3  # texts a term of the linear model has to be in
    longest_bag: int = 384  # of its terms in a text
    pair_steps: int = 1000  # of 64 texts
    read: int = 0  # tokens of a text that SmolLM2 reads; 0: it lends its words


PLANS = {
    "newsgroups": Plan(length=128, steps=1500, batch=32, least=3, pair_steps=500),
    "headlines": Plan(
        length=24, steps=1600, batch=64, least=2, drop=0.1, least_pairs=2, longest_bag=48,
        pair_steps=1200, read=48,
    ),
    "sentences": Plan(length=32, steps=800, batch=64, least=2, longest_bag=96, read=64),
    "reviews": Plan(length=192, steps=600, batch=32, least=5, least_pairs=4, pair_steps=1200),
}  # fmt: skip


class Task(NamedTuple):
    """What is learnt, where settings are tried out, and what is judged."""

    name: str
    train: labelled.Texts
    validation: labelled.Texts
    held_out: labelled.Texts
    num_classes: int
    plan: Plan

    @property
    def parts(self):
        return self.train, self.validation, self.held_out


class Way(NamedTuple):
    """Scores `[N, K]` of the validation and of the held-out texts, and what a reader may ask."""

    validation: np.ndarray
    held_out: np.ndarray
    kept: str
    explain: Callable[[], list[list[str]]] | None = None  # for each class, what spoke for it


def all_of(run, task: Task, config, options) -> dict[str, Way]:
    """Name ↦ way; those of SmolLM2 only where it was fetched."""
    try:
        states = states_of(run, task, config, options) if task.plan.read else None
        vectors = None if task.plan.read else functools.partial(vectors_of, run, config, options)
        linear = {} if states is None else {"from SmolLM2": smollm2(task, states, config)}
        return transformers(run, task, config, vectors) | linear | word_terms(run, task, config)
    except FileNotFoundError as error:
        print(f"without SmolLM2: {error}")
    return transformers(run, task, config, None) | word_terms(run, task, config)


def transformers(run, task: Task, config, vectors: Callable | None) -> dict[str, Way]:
    """From scratch, with a group lasso over words, and from `vectors` of the words if given."""
    plan, known = task.plan, classifier.vocabulary(task.train.texts, task.plan.least)
    train, validation, held_out = (classifier.encode(part.texts, known) for part in task.parts)
    model = lm.ModelConfig(
        len(known.words), num_layers=config.num_layers, width=config.width,
        num_heads=max(1, config.width // 32), max_length=max(config.longest, plan.length),
    )  # fmt: skip
    starts = chains(model, task, config)
    if vectors is not None:
        scratch, plain = starts["from scratch"]
        start = {**scratch["lm"], "embedding": {"kernel": vectors(known.words)}}
        starts["from SmolLM2"] = {**scratch, "lm": start}, plain
    rows = fitting.epochs(config.seed, len(train), plan.batch, plan.steps)
    data = classifier.pieces(config.seed, train, task.train.labels, plan.length, rows, plan.drop)
    result = {}
    for way, (params, tx) in starts.items():
        scores = functools.partial(
            classifier.judge, documents=validation, length=config.longest, config=model
        )
        right = lambda params, scores=scores: {
            "accuracy": np.mean(scores(params).argmax(axis=1) == task.validation.labels)
        }
        params = fitting.fit(
            run, f"{task.name}, {way}", functools.partial(classifier.loss, config=model), tx,
            params, data, np.arange(rows.size, dtype=np.int32).reshape(rows.shape),
            folder=folder_of(run, task, way), config=config, chunk=plan.steps // 10,
            evaluate_every=5, evaluate=right,
        ).params  # fmt: skip
        result[way] = Way(
            scores(params),
            classifier.judge(params, held_out, config.longest, model),
            f"{words_kept(params):,} of {len(known.words):,} words",
            functools.partial(classifier.telling, params, held_out, known, model, plan.length),
        )
    return result


def chains(model, task: Task, config):
    """Name ↦ what training starts from, and its chain."""
    rate = language_model.ramp(config.learning_rate, task.plan.steps)
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay),
    )
    # A group is a word: what is not worth its norm gets an embedding of exact zeros.
    sparse = optax.chain(
        plain,
        optax.masked(apply_prox(penalties.group_lasso(config.strength, axis=-1), rate), only_words),
    )
    scratch = classifier.init(jax.random.key(config.seed), model, task.num_classes)
    return {"from scratch": (scratch, plain), "group-sparse": (scratch, sparse)}


def only_words(params):
    """Marks the embedding."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[1].key == "embedding", params)


def words_kept(params) -> int:
    """Words whose embedding is not zero."""
    return int(np.count_nonzero(np.any(np.asarray(params["lm"]["embedding"]["kernel"]), axis=1)))


def vectors_of(run, config, options, words) -> jax.Array:
    """Vectors of the words, computed once for each vocabulary: `[V, width]`."""
    settings = {"words": words, "layers": config.vector_layers}

    def compute(folder):
        data = pathlib.Path(options.data)
        found = smollm_states.words(words[2:], config.vector_layers, data)
        np.save(folder / "vectors.npy", found)

    stage = runs.stage(run, "word-vectors", settings, compute)
    vectors = np.load(stage.path / "vectors.npy")
    parts = smollm_states.principal(vectors, config.width, BEFORE)
    return jnp.asarray(np.concatenate([np.zeros((2, config.width)), parts]), jnp.float32)


def states_of(run, task: Task, config, options) -> Mapping[str, np.ndarray]:
    """Text ↦ its vector, computed once for each corpus, whatever the seed makes of it."""
    names = sorted({text for part in task.parts for text in part.texts})
    settings = {
        "layers": config.state_layers, "read": task.plan.read,
        "texts": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }  # fmt: skip

    def compute(folder):
        data = pathlib.Path(options.data)
        found = smollm_states.texts(names, config.state_layers, task.plan.read, folder, data)
        np.save(folder / "states.npy", found)

    stage = runs.stage(run, f"states-{task.name}", settings, compute)
    return dict(zip(names, np.load(stage.path / "states.npy"), strict=True))


def smollm2(task: Task, states: Mapping[str, np.ndarray], config) -> Way:
    """A linear head on what the middle of SmolLM2 makes of a text, itself left as it is.

    Of a path of ridge penalties the one that makes the validation texts likeliest.
    """
    train, *others = (np.stack([states[text] for text in part.texts]) for part in task.parts)
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-3
    scale = lambda x: jnp.asarray((x - mean) / spread)
    strengths = jnp.geomspace(0.1, 1e-4, config.strengths)
    path = heads(scale(train), jnp.asarray(task.train.labels), strengths, task.num_classes)
    scores = [
        np.einsum("nd,sdk->snk", scale(x), path["kernel"]) + path["bias"][:, None] for x in others
    ]
    log_probs = scores[0] - jax.nn.logsumexp(scores[0], axis=-1, keepdims=True)
    labels = task.validation.labels
    best = int(np.argmax(np.mean(log_probs[:, np.arange(len(labels)), labels], axis=1)))
    return Way(scores[0][best], scores[1][best], f"ridge {strengths[best]:.0e}")


@functools.partial(jax.jit, static_argnames="num_classes")
def heads(features, labels, strengths, num_classes: int):
    """Linear heads `{"kernel": [S, D, K], "bias": [S, K]}`, one for each ridge penalty."""

    def loss(params):
        scores = features @ params["kernel"] + params["bias"][None]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))

    start = {"kernel": jnp.zeros((features.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    ridge = lambda strength: penalties.masked(
        penalties.squared_l2(strength), {"kernel": True, "bias": False}
    )
    return solvers.path(
        loss, start, ridge, strengths, tolerance=1e-4, max_iterations=500, implicit=False
    ).params


def word_terms(run, task: Task, config) -> dict[str, Way]:
    """The linear model of words and pairs, most of them thrown out by a group lasso."""
    plan, known = task.plan, word_pairs.terms(task.train.texts, task.plan.least_pairs)
    train, validation, held_out = (
        word_pairs.bags(part.texts, known, times * plan.longest_bag, config.seed)
        for part, times in zip(task.parts, (1, 4, 4), strict=True)
    )
    batch = min(64, len(train))
    judge = functools.partial(word_pairs.judge, weights=known.weights)
    right = lambda params: {
        "accuracy": np.mean(judge(params, validation).argmax(axis=1) == task.validation.labels)
    }
    params = fitting.fit(
        run, f"{task.name}, words and pairs",
        functools.partial(word_pairs.loss, weights=jnp.asarray(known.weights)),
        word_pairs.chain(config.pair_rate, config.pair_strength),
        word_pairs.init(len(known.names), task.num_classes),
        {"bag": train, "label": task.train.labels.astype(np.int32)},
        fitting.epochs(config.seed, len(train), batch, plan.pair_steps),
        folder=folder_of(run, task, "pairs"), config=config, chunk=plan.pair_steps // 10,
        evaluate_every=5, evaluate=right,
    ).params  # fmt: skip
    return {"words and pairs": Way(
        judge(params, validation), judge(params, held_out),
        f"{word_pairs.kept(params):,} of {len(known.names) - 1:,} terms",
        functools.partial(word_pairs.telling, params, held_out, known),
    )}  # fmt: skip


def folder_of(run, task: Task, way: str) -> pathlib.Path:
    return run.path / "fit" / f"{task.name}-{way.replace(' ', '-')}"
