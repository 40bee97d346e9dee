"""A character-level language model from any text file.

    python -m experiments.train_lm                      # Shakespeare's plays
    python -m experiments.train_lm --text my_novel.txt

2 CPU cores (AMD EPYC, 2.6 GHz), 91 s: held-out loss 1.68 nats per character (one seed).
nanoGPT's README gives 1.88 for its recipe on another text of Shakespeare.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.support import Refusal
from experiments.support.data import corpora, tokenization
from experiments.support.models import language_model
from experiments.support.run import cli, configs, files, model_store, plots, runs, supervised, tables
from proxlm import _validation, lm


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    """The defaults are nanoGPT's recipe for a CPU."""

    text: str = ""  # a UTF-8 file; empty: Shakespeare
    num_layers: int = configs.field(4, smoke=1)  # of the model
    num_heads: int = configs.field(4, smoke=2)  # of attention, in each layer
    width: int = configs.field(128, smoke=32)  # of the residual stream
    context: int = 64  # characters that the model reads
    batch: int = 12  # windows of a step
    steps: int = configs.field(2000, smoke=20)  # of AdamW
    patience: int = 0  # evaluations (one in 500 steps) without a better held-out loss; 0: all steps
    learning_rate: float = 1e-3  # the highest, after the warm-up
    weight_decay: float = 0.1  # of kernels and embeddings
    seed: int = 0  # of the start, the windows and the samples
    prompt: str = "\n"  # the beginning of the samples
    samples: int = configs.field(3, smoke=1)  # texts to write
    sample_length: int = configs.field(400, smoke=60)  # characters of each

    def validate(self) -> None:
        _validation.at_least(2, context=self.context)
        if self.steps > 100 and self.steps % 100:
            raise _validation.invalid("steps", self.steps, "1 to 100, or a multiple of 100")
        if not 1 <= len(self.prompt) <= self.context:
            raise _validation.invalid("prompt", self.prompt, f"1 to {self.context} characters, the context")
        language_model.shape(self, 2)


def read(config: Config, run: runs.Run) -> str:
    """The text to learn: the given file, or as much of the plays as "tiny Shakespeare" has."""
    if not config.text:
        return corpora.shakespeare(corpora.TINY_SHAKESPEARE, folder=run.data)
    text = corpora.text_file(config.text)
    run.check_input(config.text)
    return text


class Windows(NamedTuple):
    """Rows of context + 1 tokens: those of every training step, and held-out ones."""

    train: np.ndarray  # [steps, batch, context + 1]
    held_out: np.ndarray  # [1024, context + 1]


def cut(tokens: np.ndarray, config: Config) -> Windows:
    """Random windows of the first nine tenths to learn, and of the last to judge by."""
    border = int(0.9 * len(tokens))
    if len(tokens) - border <= config.context:
        raise Refusal(
            f"the text has {len(tokens)} characters, and its last tenth, which is held out, "
            f"{len(tokens) - border}: expected more than the context's {config.context} there; "
            "give a longer text or a shorter context"
        )
    shape = (config.steps, config.batch)
    return Windows(
        tokenization.random_windows(tokens[:border], config.context, config.seed, shape),
        tokenization.random_windows(tokens[border:], config.context, config.seed + 1, (1024,)),
    )


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Trains and samples; returns the final numbers."""
    text = read(config, run)
    alphabet = tokenization.Characters(text)
    # A text without a line break cannot begin with one, as the default has it.
    has_default = config.prompt in text or config.prompt != Config.prompt
    prompt = alphabet.encode(config.prompt if has_default else text[0])
    windows = cut(alphabet.encode(text), config)
    model = language_model.shape(config, len(alphabet.alphabet), max_length=config.context)
    print(f"{len(text):,} characters, {lm.num_params(model):,} parameters")
    state = fit(run, windows, model, config)
    model_store.save(run.path / "lm", state.params, model, alphabet)
    rows = runs.read_log(run, "language model")
    judged = [row for row in rows if "held_out_loss" in row]
    last = min(judged, key=lambda row: row["held_out_loss"]) if config.patience else rows[-1]
    numbers = {name: last[name] for name in ("loss", "held_out_loss", "perplexity")}
    losses = {"training": plots.logged(rows, "loss"), "held out": plots.logged(rows, "held_out_loss")}
    texts = write(state.params, prompt, model, alphabet, config)
    files.write_text(run.path / "samples.txt", "\n\n--------\n\n".join(texts) + "\n")
    words = ("loss, training", "loss, held out", "perplexity, held out")
    table = tables.table([*zip(words, numbers.values(), strict=True)], ["", f"step {last['step']}"])
    figure = plots.curves({"loss, nats per character": losses})
    return run.write(numbers, [table, texts[0]], {"curves": figure})


def fit(run, windows: Windows, model, config: Config):
    """Learns by AdamW, its rate warmed up and then lowered to a tenth."""
    decays = functools.partial(jax.tree.map, lambda x: x.ndim >= 2)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(100, config.steps // 2), config.steps, 0.1 * config.learning_rate
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=decays),
    )
    return supervised.fit(
        run,
        "language model",
        functools.partial(language_model.loss, config=model),
        optimizer,
        lm.init(jax.random.key(config.seed), model),
        windows.train.reshape(-1, config.context + 1),
        supervised.in_order(config.steps, config.batch),
        chunk=min(100, config.steps),
        evaluate_every=5,
        patience=config.patience,
        evaluate=language_model.make_evaluate(windows.held_out, model),
    )


def write(params, prompt, model, alphabet, config: Config) -> list[str]:
    """Samples continuations of the prompt, half a context at a time: it learnt no longer ones."""
    half = config.context // 2
    text = np.broadcast_to(prompt, (config.samples, len(prompt)))
    sample = jax.jit(functools.partial(lm.sample, config=model, num_tokens=half))
    for key in jax.random.split(jax.random.key(config.seed + 2), -(-config.sample_length // half)):
        recent = text[:, -half:]
        missing = ((0, 0), (half - recent.shape[1], 0))
        mask = np.pad(np.ones(recent.shape, bool), missing)
        samples = sample(key, params, np.pad(recent, missing), prompt_mask=mask)
        text = np.concatenate([text, samples.tokens[:, half:]], axis=1)
    return [alphabet.decode(row[: len(prompt) + config.sample_length]) for row in text]


if __name__ == "__main__":
    cli.run(main)
