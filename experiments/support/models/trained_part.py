"""The part of a model that an experiment trains, by one word: all, adapters, layers, or few weights.

    all            every parameter
    last:6         the last six layers
    lora:8         factors of rank 8 beside the kernels of the attention
    sparse:3e-4    every parameter, at an ℓ1 penalty on its change of strength 3e-4, in Adam's metric

Two of them stand together, as in "last:8 sparse:3e-4".
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.support import Refusal
from proxlm import _validation, lm, penalties, transforms

KINDS = ("all", "last", "lora", "sparse")
EXAMPLE = 'words such as "all", "last:6", "lora:8" and "sparse:1e-4"'


@dataclasses.dataclass(frozen=True)
class Choice:
    """A parsed choice: None is what it leaves out."""

    last: int | None = None
    lora: int | None = None
    sparse: float | None = None

    def split(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """Parts parameters, a value head of theirs always trained, and `lm.trainable.Frozen`."""
        pattern = ""
        if self.lora is not None:
            params, pattern = lm.lora.init(key, params, self.lora), lm.trainable.PATTERNS["factors"]
        select = pattern if self.last is None else lm.trainable.last_layers(self.last, pattern)
        try:
            return lm.trainable.split(params, [select, "^value/"])
        except ValueError as error:
            raise Refusal(f"train: {error}") from error

    def adam(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """Adam, with the penalty on the change from where it begins if there is one."""
        if self.sparse is None:
            return optax.adam(learning_rate)
        return transforms.proximal_adam(learning_rate, penalties.l1(self.sparse), anchored=True)


def parse(text: str) -> Choice:
    """Reads a choice; ValueError for what is none.

    >>> parse("last:8 sparse:3e-4")
    Choice(last=8, lora=None, sparse=0.0003)
    """
    found: dict[str, Any] = {}
    for word in text.split():
        kind, _, number = word.partition(":")
        try:
            if kind not in KINDS or kind in found or (kind == "all") != (number == ""):
                raise ValueError(kind)
            if kind != "all":
                found[kind] = float(number) if kind == "sparse" else int(number)
                _validation.positive(**{kind: found[kind]})
        except ValueError as error:
            raise _validation.invalid("train", text, EXAMPLE, function="parse") from error
    if not text.split() or {"lora", "sparse"} <= set(found):
        raise _validation.invalid("train", text, f"{EXAMPLE}, but not lora and sparse together")
    return Choice(**found)


def changed(start: Any, trained: Any) -> int:
    """The number of weights that differ from where they began, bit for bit."""
    counts = jax.tree.map(lambda one, other: jnp.sum(one != other), start, trained)
    return sum(map(int, jax.tree.leaves(counts)))


def save(folder: pathlib.Path, model: lm.Pretrained, trained: Any, frozen: Any) -> None:
    """Writes the trained model as a folder that transformers opens."""
    params = {k: v for k, v in lm.lora.merge(lm.trainable.merge(trained, frozen)).items() if k != "value"}
    config = dataclasses.replace(model.config, value_head=False)
    try:
        lm.save(folder, model._replace(params=params, config=config))
    except ImportError as error:
        raise Refusal(str(error)) from error
