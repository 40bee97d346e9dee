"""Report of `experiments.translation`: translations, their scores, tables and curves."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import sacrebleu

from experiments.support.data import tokenization
from experiments.support.run import files, plots, runs, tables
from experiments.support.translation import batches, lstm
from proxlm import lm

BEAMS = 4
SMOKE_VERSES = 2500  # looked at for every part
WATCHED = 128  # verses of the development books, for the curves
SAMPLED = lm.SamplingConfig(stop_token=tokenization.END)
GREEDY = lm.SamplingConfig(stop_token=tokenization.END, greedy=True)
LSTM = "LSTM, attention"
DECODERS = ("greedy", "sampled", "beam")


def describe(corpus: batches.Corpus, model: lm.ModelConfig) -> str:
    """The sizes of the corpus and the model, in words."""
    sizes = [len(part.rows) for part in (corpus.train, corpus.development, corpus.held_out)]
    return (
        f"verses of at most {corpus.longest} tokens on either side: {sizes[0]:,} to learn from, "
        f"{sizes[1]:,} of other books for the curves, {sizes[2]:,} of held-out books\n"
        f"{lm.num_params(model):,} parameters"
    )


def make_greedy(model: lm.ModelConfig):
    """`translate(params, sources) -> (tokens, mask)`, the likeliest next token every time."""
    return functools.partial(_sample, model=model, key=jax.random.key(0), sampling=GREEDY)


def make_beam(model: lm.ModelConfig, width: int = BEAMS):
    """`translate(params, sources, length_penalty)`, the likeliest translation of a beam search."""

    def translate(params, sources, length_penalty):
        beams = lm.beam_search(
            params,
            sources,
            model,
            sources.shape[1],
            width=width,
            stop_token=tokenization.END,
            length_penalty=length_penalty,
        )
        return beams.tokens[:, 0], beams.mask[:, 0]

    return translate


def make_lstm(longest: int):
    """The same by the LSTMs."""
    return functools.partial(lstm.translate, num_tokens=longest + 1)


def make_quality(corpus: batches.Corpus, translate):
    """`quality(params)`: mean sentence chrF, 0 to 100, on verses of the development books."""
    part = corpus.development
    sources, references = batches.sources(part.rows[:WATCHED]), part.references[:WATCHED]

    @jax.jit
    def quality(params):
        tokens, mask = translate(params, sources)
        return 100 * jnp.mean(batches.reward(tokens, mask, references, corpus.table))

    return quality


def make_evaluate(corpus: batches.Corpus, loss, quality):
    """`evaluate(params)`: loss and chrF on verses of the development books."""
    loss_of = jax.jit(lambda params: loss(params, corpus.development.rows[:WATCHED]))
    return lambda params: {"held_out_loss": loss_of(params), "chrf": quality(params)}


def in_pieces(translate, size: int = 64):
    """The same for many sources, so many at a time; what follows the sources is handed on."""

    @jax.jit
    def whole(params, sources, *settings):
        count = len(sources)
        padded = jnp.pad(sources, ((0, -count % size), (0, 0)))
        pieces = padded.reshape(-1, size, sources.shape[1])
        tokens, mask = jax.lax.map(lambda piece: translate(params, piece, *settings), pieces)
        join = lambda x: x.reshape(-1, x.shape[2])[:count]
        return join(tokens), join(mask)

    return whole


def measure(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    """Corpus chrF and BLEU by sacrebleu, and the characters written per character wanted."""
    letters = lambda texts: sum(len("".join(text.split())) for text in texts)
    return {
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references]).score,
        "length": letters(hypotheses) / letters(references),
    }


def choose_penalty(
    corpus: batches.Corpus, translate: Callable, seeds: Sequence[Any], penalties: Sequence[float]
) -> float:
    """The length penalty of the highest chrF on the development books, mean over seeds; the first of equals.

    `translate(params, sources, length_penalty)` gives tokens and mask; `seeds` are params.
    """
    if len(penalties) == 1:
        return penalties[0]
    part = corpus.development
    rows, references = jnp.asarray(batches.sources(part.rows)), [verse.target for verse in part.verses]

    def quality(penalty):
        texts = [batches.texts(corpus, *translate(params, rows, penalty)) for params in seeds]
        return np.mean([measure(hypotheses, references)["chrf"] for hypotheses in texts])

    return max(penalties, key=quality)


def write(run, corpus, model, systems, baseline, penalties: Sequence[float]) -> dict[str, Any]:
    """Translates the held-out books by every system and decoder; writes the report.

    `systems` maps names to params of the transformer, one row per seed; `penalties` are those of
    length from which each system's beam search is given its own.
    """
    rows = jnp.asarray(batches.sources(corpus.held_out.rows))
    references = [verse.target for verse in corpus.held_out.verses]
    copy = [verse.source for verse in corpus.held_out.verses]
    sampled = functools.partial(_sample, model=model, key=jax.random.key(1), sampling=SAMPLED)
    beam = in_pieces(make_beam(model))
    decoders = {name: in_pieces(by) for name, by in (("greedy", make_greedy(model)), ("sampled", sampled))}
    chosen = {}
    texts = {("copy of the source", "greedy"): [copy]}
    by_lstm = in_pieces(make_lstm(corpus.longest))
    texts[LSTM, "greedy"] = [batches.texts(corpus, *by_lstm(baseline, rows))]
    for name, params in systems.items():
        seeds = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(len(params["norm"]["scale"]))]
        chosen[name] = choose_penalty(corpus, beam, seeds, penalties)
        own_beam = lambda params, rows, penalty=chosen[name]: beam(params, rows, penalty)
        for decoder, translate in (decoders | {"beam": own_beam}).items():
            texts[name, decoder] = [batches.texts(corpus, *translate(seed, rows)) for seed in seeds]
    scores = {
        place: [measure(hypotheses, references) for hypotheses in several] for place, several in texts.items()
    }
    shown, others = _examples(copy, references, texts)
    files.write_text(run.path / "examples.txt", f"{shown}\n\n{others}\n")
    found = numbers(scores) | {"length_penalty": chosen}
    return run.write(found, [table(scores, chosen), shown], {"curves": draw(run)})


def table(scores, chosen) -> str:
    """One row a system: chrF by decoder, BLEU of greedy translations, lengths, and the penalty of beams."""
    rows = []
    for name in dict.fromkeys(system for system, _ in scores):
        columns = [(decoder, "chrf", 1) for decoder in DECODERS]
        columns += [("greedy", "bleu", 1), ("greedy", "length", 3), ("beam", "length", 3)]
        several = [(scores.get((name, decoder)), key, digits) for decoder, key, digits in columns]
        over_seeds = lambda found, key, digits: tables.mean_spread([s[key] for s in found], digits)
        numbers = (over_seeds(found, *how) if found else "-" for found, *how in several)
        rows.append([name, *numbers, str(chosen.get(name, "-"))])
    headers = ["held-out books", *(f"chrF, {name}" for name in DECODERS), "BLEU, greedy", "length"]
    headers += ["length, beam", "its penalty"]
    return tables.table(rows, headers)


def numbers(scores) -> dict[str, Any]:
    """Means over seeds, and the gains of learning by reward, seed by seed."""
    mean = {place: np.mean([s["chrf"] for s in several]) for place, several in scores.items()}

    def gains(decoder):
        before, names = mean["transformer", decoder], ("PPO", "minimum risk")
        return {name: [s["chrf"] - before for s in scores[f"+ {name}", decoder]] for name in names}

    of = lambda found: {f"{name}, {decoder}": value for (name, decoder), value in found.items()}
    by_decoder = {"gains": gains("greedy"), "gains_beam": gains("beam")}
    return {"chrf": of(mean), **by_decoder, "scores": of(scores)}


def draw(run) -> matplotlib.figure.Figure:
    """The curves of every stage, from the log."""
    likelihood = {name: runs.read_log(run, name) for name in ("transformer", LSTM)}
    rewarded = {name: runs.read_log(run, name) for name in ("PPO", "minimum risk")}
    # Learning by reward goes on from the transformer's last step.
    seeds = len(rewarded["PPO"][-1]["chrf"])
    start = {"step": 0, "chrf": seeds * [likelihood["transformer"][-1]["chrf"]]}
    started = {name: [start, *rows] for name, rows in rewarded.items()}
    steps, iterations = "step of maximum likelihood", "iteration of learning by reward"
    panels = {
        "chrF, greedy, development books": (likelihood, "chrf", steps),
        "nats per token, development books": (likelihood, "held_out_loss", steps),
        "chrF, greedy, development books ": (started, "chrf", iterations),
        "chrF of samples, training books": (rewarded, "reward", iterations),
        "entropy, nats per token": (rewarded, "entropy", iterations),
        "tokens of a sample": (rewarded, "length", iterations),
    }
    series = {
        title: {label: plots.logged(rows, name) for label, rows in logs.items()}
        for title, (logs, name, _) in panels.items()
    }
    labels = {title: xlabel for title, (_, _, xlabel) in panels.items()}
    return plots.curves(series, labels)


def _examples(sources, references, texts):
    """Three verses in every greedy version, and nine others."""
    blocks = []
    for i in np.linspace(0, len(sources) - 1, 12).astype(int):
        lines = {"source": sources[i], "reference": references[i]}
        lines |= {
            name: several[0][i]
            for (name, decoder), several in texts.items()
            if decoder == "greedy" and not name.startswith("copy")
        }
        blocks.append("\n".join(f"{name:>16}: {text}" for name, text in lines.items()))
    return "\n\n".join(blocks[:3]), "\n\n".join(blocks[3:])


def _sample(params, sources, *, model, key, sampling):
    """Tokens and mask `[B, R]` by the library's sampler."""
    samples = lm.sample(key, params, sources, model, sources.shape[1], sampling=sampling)
    return samples.tokens[:, sources.shape[1] :], samples.response_mask
