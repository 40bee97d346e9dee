"""A model that answers questions: judged on many, and asked one at a time from its checkpoint."""

import dataclasses
import functools
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.question_answering import talking, tasks
from experiments.support.run import files, supervised
from proxlm import lm

EXPERIMENT = "question_answering"
SAMPLING = lm.SamplingConfig(stop_token=tasks.END_TOKEN)
GREEDY = dataclasses.replace(SAMPLING, greedy=True)
REPEATS = 50  # timings of an answer
LANGUAGE = "language"

_ABOUT = "about.json"
_FIELDS = ("experiment", "model", "longest", "response", "vocabulary")


def is_right(samples: lm.Samples, truth: tasks.Encoded) -> jax.Array:
    """Exact match of each response and its answer, token for token and no longer; bool `[B]`."""
    start = samples.tokens.shape[1] - truth.answers.shape[1]
    same = (samples.tokens[:, start:] == truth.answers) | ~truth.answer_mask
    return jnp.all(same & (samples.response_mask == truth.answer_mask), axis=1)


def accuracy(
    params, exercises, task: tasks.Task, model: lm.ModelConfig, sampling: lm.SamplingConfig = GREEDY
) -> np.ndarray:
    """Share of right answers, the likeliest or sampled, of each row of params; `[seeds]`."""
    encoded = task.encode(exercises)
    return np.asarray(_accuracy(params, encoded, model, task.response, sampling))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
def _accuracy(params, encoded, model, response, sampling):
    samples = lm.sample(
        jax.random.key(0),
        params,
        encoded.prompts,
        model,
        response,
        prompt_mask=encoded.prompt_mask,
        sampling=sampling,
    )
    return jnp.mean(is_right(samples, encoded))


def save(run, name: str, task: tasks.Task, model: lm.ModelConfig, params: Any) -> None:
    """Saves one model with all that answering takes."""
    about = {
        "experiment": EXPERIMENT,
        "model": dataclasses.asdict(model),
        "longest": task.longest,
        "response": task.response,
        "vocabulary": task.words.vocabulary,
    }
    folder = run.path / "models" / name
    supervised.save_params(folder, params, about)
    files.write_text(folder / _ABOUT, json.dumps(about) + "\n")


def reply(
    question: str, place: str | os.PathLike, data: pathlib.Path = corpora.WHEELS, repeats: int = REPEATS
) -> dict[str, Any]:
    """Answers a question by the newest checkpoint at a place, or by SmolLM2, and times it.

    Args:
        question: two numbers and what to do with them, a question with choices A and B, or any other.
        place: the folder of a run, or one that holds the runs of this experiment.
        data: the folder of wheels.
        repeats: timings.

    Raises:
        Refusal: the question is empty or too long; there is no checkpoint, or it is another
            experiment's; or SmolLM2 is not there.
    """
    name = kind(question)
    if name == LANGUAGE:
        try:
            found, first = talking.reader(question, data)
        except FileNotFoundError as error:
            raise Refusal(
                f"ask={question!r} is neither arithmetic, with two numbers, nor a question with choices "
                '"A: ... B: ...", and SmolLM2, which answers others, is not there: run `make more-data`'
            ) from error
        calls = {"first token": first}
    else:
        found, calls = _calculated(question, newest(pathlib.Path(place), name) / "models" / name)
    print(f"{question}\n{found}")
    numbers: dict[str, Any] = {"answer": found}
    for part, call in calls.items():
        median, late = talking.latency(call, repeats)
        numbers[part] = {"median ms": median, "95th percentile ms": late}
        print(
            f"{part}: {median:.1f} ms in the median, {late:.1f} ms at the 95th percentile, "
            f"of {repeats}, after compilation"
        )
    return numbers


def _calculated(question, folder):
    """The answer of the model of sums, and what computes its first token and all of it."""
    about = read_about(folder / _ABOUT)
    model = lm.ModelConfig(**about["model"])
    tokens = tasks.Words(about["vocabulary"])
    ask = lambda: prompt_of(question, tokens, about["longest"])
    ask()
    params = supervised.load_params(folder, model, about)

    def answer(num_tokens):
        sample = jax.jit(functools.partial(lm.sample, config=model, num_tokens=num_tokens, sampling=GREEDY))

        def call():
            prompt, mask = ask()
            samples = sample(jax.random.key(0), params, prompt, prompt_mask=mask)
            return jax.device_get(samples.tokens)[0, -num_tokens:]

        return call

    calls = {"first token": answer(1), "whole answer": answer(about["response"])}
    if unknown := tokens.unknown(question):
        print(f"words it has never seen: {', '.join(unknown)}")
    return tokens.decode(calls["whole answer"]()).upper(), calls


def read_about(path: pathlib.Path) -> dict[str, Any]:
    """The description that `save` wrote beside a model."""
    try:
        about = json.loads(path.read_text())
        lm.ModelConfig(**about["model"])
        return {name: about[name] for name in _FIELDS}
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(
            f"checkpoint: {path} is damaged ({error}); run `python -m experiments.question_answering` again"
        ) from error


def kind(question: str) -> str:
    """The kind of a question, by its form.

    >>> kind("12 + 7 ="), kind("The water gets A: hot B: cold"), kind("What is rain?")
    ('arithmetic', 'science', 'language')
    """
    if not question.strip():
        raise Refusal(
            'ask is empty: give a question, as "12 + 7 =" or "The ice melts if it gets A: warmer B: colder"'
        )
    parts = tasks.choices(question)
    if parts and not all(parts):
        raise Refusal(f"ask={question!r} lacks its question or a choice: give all three")
    if parts:
        return "science"
    if len(re.findall(r"\d+", question)) == 2:
        return "arithmetic"
    return LANGUAGE


def prompt_of(question: str, tokens: tasks.Words, longest: int):
    """The tokens of a question at the end of a row `[1, longest]`, and their mask."""
    count = len(tasks.words(question))
    if count > longest:
        raise Refusal(
            f"ask has {count} words, digits and marks: the model has learnt from at most "
            f"{longest}; ask it shorter"
        )
    for number in re.findall(r"\d+", question):
        if tasks.choices(question) is None and int(number) > tasks.LARGEST:
            raise Refusal(
                f"ask: {number} is more than {tasks.LARGEST}, the largest number that the "
                "model has learnt from; give a smaller one"
            )
    row = tasks.encode([tasks.Exercise(question, "")], tokens, longest, 1)
    return row.prompts, row.prompt_mask


def newest(place: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of a run that has such a model: the place itself, or the newest run in it."""
    folders = [place, *sorted(place.glob("[0-9]*"), reverse=True)]
    found = next((path for path in folders if (path / "models" / name / _ABOUT).exists()), None)
    if found is not None:
        return found
    if (place / "config.json").exists() and place.parent.name != EXPERIMENT:
        raise Refusal(
            f"checkpoint={str(place)!r} is a run of {place.parent.name!r}: give one of "
            f"{EXPERIMENT!r}, or leave it out"
        )
    raise Refusal(
        f"checkpoint: {str(place)!r} holds no {name} model of {EXPERIMENT!r}; run "
        "`python -m experiments.question_answering` first, or give the folder of a run"
    )
