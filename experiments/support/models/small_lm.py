"""A small language model of characters, which the experiments on penalties and policies start from."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.data import corpora, tokenization
from experiments.support.models import language_model
from experiments.support.run import configs, runs, supervised
from proxlm import lm
from proxlm.penalties.groups import grouping

B2 = 0.99
# A neuron: a column of gate and one of up, with a row of down.
NEURONS = grouping.linked({"gate_up/kernel": (0, 3), "down/kernel": (0, 1)})
LAST = 0.05  # of the learning rate, at the end of what follows the start


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    """The fields of an experiment on such a model, which may give them other defaults."""

    num_layers: int = configs.field(2, smoke=1)  # of the model
    num_heads: int = configs.field(4, smoke=2)  # of attention, in each layer
    width: int = configs.field(64, smoke=16)  # of the residual stream
    hidden_width: int = configs.field(256, smoke=24)  # neurons of an MLP
    context: int = configs.field(64, smoke=16)  # characters of a text
    learning_rate: float = 2e-3  # the highest, of Adam
    seeds: int = configs.field(3, smoke=1)  # models to train, each from a start of its own
    seed: int = 0  # the first of them

    def validate(self) -> None:
        language_model.shape(self, 2)


class Setup(NamedTuple):
    """The model of an alphabet, and a text in windows, some of it held out.

    Attributes:
      alphabet: its characters.
      cut: `(seed=, shape=[steps, batch]) -> [steps, batch, T + 1]`, random windows to learn from.
      held_out: `[judged, T + 1]`.
      model: its configuration.
      evaluate: params ↦ held-out loss and perplexity.
    """

    alphabet: tokenization.Characters
    cut: Callable[..., np.ndarray]
    held_out: np.ndarray
    model: lm.ModelConfig
    evaluate: Callable[[Any], dict[str, jax.Array]]


def set_up(config: Config, alphabet: tokenization.Characters, text: str, judged: int, share=0.9) -> Setup:
    """Holds out what is left of a text after a share of it, and draws windows on which models are judged."""
    tokens, size = alphabet.encode(text), len(alphabet.alphabet)
    model = language_model.shape(config, size, max_length=config.context)
    border = int(share * len(tokens))
    cut = functools.partial(tokenization.random_windows, tokens[:border], config.context)
    held_out = tokenization.random_windows(tokens[border:], config.context, 1, (judged,))
    print(f"{lm.num_params(model):,} parameters")
    return Setup(alphabet, cut, held_out, model, language_model.make_evaluate(held_out, model))


def shakespeare(run: runs.Run, config: Config, judged: int) -> Setup:
    """The plays, their last tenth held out."""
    text = corpora.shakespeare(corpora.TINY_SHAKESPEARE, folder=run.data)
    return set_up(config, tokenization.Characters(text), text, judged)


def learn(run: runs.Run, name: str, seed: int, windows: np.ndarray, setup: Setup, last: float = 0.1) -> Any:
    """Trains a model by Adam on windows `[steps, batch, T + 1]`; returns its params."""
    steps, batch = windows.shape[:2]
    schedule = language_model.ramp(run.config.learning_rate, steps, warmup=0.1, last=last)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=B2))
    return supervised.fit(
        run,
        name,
        functools.partial(language_model.loss, config=setup.model),
        optimizer,
        lm.init(jax.random.key(seed), setup.model),
        windows.reshape(-1, windows.shape[2]),
        supervised.in_order(steps, batch),
        chunk=chunk_of(steps, 10),
        evaluate_every=10,
        evaluate=setup.evaluate,
    ).params


def learn_each_seed(run: runs.Run, setup: Setup, steps: int, batch: int) -> list[Any]:
    """The dense models that penalties continue from, one a seed of the run's config."""
    first = run.config.seed
    return [
        learn(run, f"dense {seed}", seed, setup.cut(2 * seed + 2, (steps, batch)), setup)
        for seed in range(first, first + run.config.seeds)
    ]


def median_size(params):
    """The median over neurons of the root mean square of their weights."""
    mlp = params["blocks"]["mlp"]
    gate_up, down = jnp.square(mlp["gate_up"]["kernel"]), jnp.square(mlp["down"]["kernel"])
    squares = (jnp.sum(gate_up, axis=(1, 2)) + jnp.sum(down, axis=2)) / (3 * down.shape[2])
    return jnp.sqrt(jnp.median(squares))


def chunk_of(steps: int, parts: int) -> int:
    """Steps in a chunk: all steps over `parts` where that divides them, else all of them."""
    return steps // parts if steps % parts == 0 else steps
