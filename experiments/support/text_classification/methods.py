"""The methods of `experiments.text_classification`."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.data import corpora
from experiments.support.models import language_model, pretrained, smollm
from experiments.support.run import supervised
from experiments.support.text_classification import (
    datasets,
    fine_tuning,
    ngrams,
    smollm_features,
    transformer,
)
from proxlm import apply_prox, lm, penalties

SMOLLM2, PHRASES, FINE_TUNED = "from SmolLM2", "phrases", "fine-tuned SmolLM2"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of one corpus: how much of a text is read, and for how long it is learnt."""

    length: int  # words of a training text
    steps: int
    batch: int
    least: int  # texts a word has to be in
    drop: float = 0.3  # share of the words of a training text left out
    phrase: int = 2  # words of a phrase at most
    least_phrases: int = 4  # texts a phrase has to be in
    bag: int = 384  # phrases of a training text
    phrase_steps: int = 1200  # of 64 texts
    read: int = 128  # tokens of a text that SmolLM2 reads where it is fine-tuned


PLANS = {
    "newsgroups": Plan(length=128, steps=1500, batch=32, least=3, phrase_steps=500),
    "headlines": Plan(
        length=24, steps=1600, batch=64, least=2, drop=0.1, phrase=3, least_phrases=2, bag=48, read=48
    ),
    "sentences": Plan(length=32, steps=800, batch=64, least=2, least_phrases=2, bag=96, read=64),
    "reviews": Plan(length=192, steps=600, batch=32, least=5),
}


class Task(NamedTuple):
    """Texts for training, validation and judging, with their classes and plan."""

    name: str
    train: datasets.Texts
    validation: datasets.Texts
    held_out: datasets.Texts
    num_classes: int
    plan: Plan

    @property
    def parts(self):
        return self.train, self.validation, self.held_out

    def right(self, scores: np.ndarray) -> float:
        """Share of the validation texts that scores `[N, K]` get right."""
        return np.mean(scores.argmax(axis=1) == self.validation.labels)


class Result(NamedTuple):
    """Scores `[N, K]` of a method on the validation and the held-out texts.

    Attributes:
      validation: scores of the validation texts.
      held_out: scores of the held-out texts.
      kept: the size of the model, in words.
      explain: gives for each class the words that spoke most for it.
    """

    validation: np.ndarray
    held_out: np.ndarray
    kept: str
    explain: Callable[[], list[list[str]]] | None = None


def run_all(run, task: Task, config) -> dict[str, Result]:
    """Method ↦ result; that of SmolLM2 only where it was fetched: fine-tuned, or lending its words."""
    tuned, vectors, own = task.name in config.fine_tune, None, {}
    if (tuned and config.tuned_model != pretrained.SMOLLM2) or is_fetched(run.data):
        if tuned:
            own = {FINE_TUNED: fine_tuned(run, task, config)}
        else:
            vectors = functools.partial(smollm_features.vectors_of, run=run, config=config, data=run.data)
    return transformers(run, task, config, vectors) | own | {PHRASES: phrases_of(run, task, config)}


def is_fetched(data: pathlib.Path) -> bool:
    """Whether the wheel of SmolLM2 is there; says so if not."""
    try:
        corpora.wheel(smollm.PACKAGE, data, corpora.MORE)
    except FileNotFoundError as error:
        print(f"without SmolLM2: {error}")
        return False
    return True


def fine_tuned(run, task: Task, config) -> Result:
    """The first layers of SmolLM2, the last of them fine-tuned."""
    found = fine_tuning.scores_of(run, task, config)
    return Result(found.validation, found.held_out, f"{found.trained / 1e6:.1f} M weights trained")


def transformers(run, task: Task, config, vectors: Callable | None) -> dict[str, Result]:
    """From scratch, with a group lasso over words, and from `vectors` of the words if given."""
    plan, known = task.plan, transformer.vocabulary(task.train.texts, task.plan.least)
    train, validation, held_out = (transformer.encode(part.texts, known) for part in task.parts)
    model = shape(len(known.words), plan.length, config)
    starts = chains(model, task, config)
    if vectors is not None:
        scratch, plain = starts["from scratch"]
        start = {**scratch["lm"], "embedding": {"kernel": vectors(known.words)}}
        starts[SMOLLM2] = {**scratch, "lm": start}, plain
    rows = supervised.epochs(config.seed, len(train), plan.batch, plan.steps)
    data = transformer.pieces(config.seed, train, task.train.labels, plan.length, rows, plan.drop)
    result = {}
    for way, (params, optimizer) in starts.items():
        scores = functools.partial(
            transformer.judge, documents=validation, length=config.longest, config=model
        )
        right = lambda params, scores=scores: {"accuracy": task.right(scores(params))}
        found = supervised.fit(
            run,
            f"{task.name}, {way}",
            functools.partial(transformer.loss, config=model),
            optimizer,
            params,
            data,
            supervised.in_order(*rows.shape),
            chunk=plan.steps // 10,
            evaluate_every=5,
            evaluate=right,
        )
        params: Any = found.params
        result[way] = Result(
            scores(params),
            transformer.judge(params, held_out, config.longest, model),
            f"{ngrams.kept(params['lm']['embedding']):,} of {len(known.words):,} words",
            functools.partial(transformer.telling, params, held_out, known, model, plan.length),
        )
    return result


def shape(num_words: int, length: int, config) -> lm.ModelConfig:
    """The transformer for texts of so many words, of a vocabulary of so many."""
    own = {"num_heads": max(1, config.width // 32), "max_length": max(config.longest, length)}
    return language_model.shape(config, num_words, **own)


def chains(model, task: Task, config) -> dict[str, tuple[Any, optax.GradientTransformation]]:
    """Name ↦ what training starts from, and its chain."""
    rate = language_model.ramp(config.learning_rate, task.plan.steps)
    plain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay)
    )
    # A group is a word: what is not worth its norm gets an embedding of exact zeros.
    sparse = optax.chain(
        plain, optax.masked(apply_prox(penalties.group_lasso(config.strength, axis=-1), rate), only_words)
    )
    scratch = transformer.init(jax.random.key(config.seed), model, task.num_classes)
    return {"from scratch": (scratch, plain), "group-sparse": (scratch, sparse)}


def only_words(params):
    """Marks the embedding."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[1].key == "embedding", params)


def phrases_of(run, task: Task, config) -> Result:
    """The linear model of phrases, most of them thrown out by a group lasso."""
    plan = task.plan
    known = ngrams.known(task.train.texts, plan.phrase, plan.least_phrases)
    train, validation, held_out = (
        ngrams.bags(part.texts, known.index, plan.phrase, times * plan.bag, config.seed)
        for part, times in zip(task.parts, (1, 4, 4), strict=True)
    )
    judge = functools.partial(ngrams.judge, weights=known.weights)
    right = lambda params: {"accuracy": task.right(judge(params, validation))}
    params = supervised.fit(
        run,
        f"{task.name}, phrases",
        functools.partial(ngrams.loss, weights=jnp.asarray(known.weights)),
        ngrams.chain(config.phrase_rate, config.phrase_strength),
        ngrams.init(len(known.names), task.num_classes),
        {"bag": train, "label": task.train.labels.astype(np.int32)},
        supervised.epochs(config.seed, len(train), min(64, len(train)), plan.phrase_steps),
        chunk=plan.phrase_steps // 10,
        evaluate_every=5,
        evaluate=right,
    ).params
    return Result(
        judge(params, validation),
        judge(params, held_out),
        f"{ngrams.kept(params):,} of {len(known.names) - 1:,} phrases",
        functools.partial(ngrams.telling, params, held_out, known),
    )
