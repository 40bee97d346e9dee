"""The part of a model that an experiment trains, by one word: all, adapters, layers, or few weights.

    all            every parameter
    last:6         the last six layers
    norms          the scales of the norms
    lora:8         factors of rank 8 beside every kernel of the layers
    sparse:3e-4    every parameter, at an ℓ1 penalty on its change of strength 3e-4, in Adam's metric
    sparse:0.1%    the same, so strong that the first gradients move this share of them; in fine-tuning

Some stand together, as in "last:8 sparse:3e-4" or "norms sparse:1e-3".
"""

import dataclasses
import pathlib
from typing import Any

import jax
import optax

from experiments.support import Refusal
from experiments.support.run import processes
from proxlm import _validation, lm, penalties, transforms

KINDS = ("all", "last", "norms", "lora", "sparse")
WITHOUT_NUMBER = ("all", "norms")
EXAMPLE = 'words such as "all", "last:6", "norms", "lora:8" and "sparse:1e-4"'


@dataclasses.dataclass(frozen=True)
class Choice:
    """A parsed choice: None is what it leaves out."""

    last: int | None = None
    norms: bool = False
    lora: int | None = None
    sparse: float | None = None
    share: float | None = None  # in place of the strength of sparse

    def at(self, gradient: Any) -> "Choice":
        """The choice with a strength in place of the share, by a gradient at the start."""
        if self.share is None:
            return self
        return dataclasses.replace(self, sparse=float(lm.delta.strength(gradient, self.share)), share=None)

    def split(self, key: jax.Array, params: Any) -> tuple[Any, lm.trainable.Frozen]:
        """Parts parameters in those that are trained, a value head always, and those that are not."""
        pattern = lm.trainable.PATTERNS["norms"] if self.norms else ""
        try:
            if self.lora is not None:
                params = lm.lora.init(key, params, self.lora, pattern=".")
                pattern = lm.trainable.PATTERNS["factors"]
            select = pattern if self.last is None else lm.trainable.last_layers(self.last, pattern)
            return lm.trainable.split(params, [select, "^value/"])
        except ValueError as error:
            raise Refusal(f"train: {error}") from error

    def adam(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """Adam, in its metric the penalty on the change from where it begins, if there is one."""
        if self.sparse is None:
            return optax.adam(learning_rate)
        return transforms.proximal_adam(learning_rate, penalties.l1(self.sparse), anchored=True)


def parse(text: str, shares: bool = False) -> Choice:
    """Reads a choice; ValueError for what is none, and for a share where it is not allowed.

    >>> parse("last:8 sparse:3e-4")
    Choice(last=8, norms=False, lora=None, sparse=0.0003, share=None)
    """
    found: dict[str, Any] = {}
    for word in text.split():
        kind, _, number = word.partition(":")
        try:
            if kind not in KINDS or kind in found or (kind in WITHOUT_NUMBER) != (number == ""):
                raise ValueError(kind)
            if shares and kind == "sparse" and number.endswith("%"):
                found["share"] = float(number[:-1]) / 100
                _validation.within(1e-9, 1, share=found["share"])
            elif kind == "norms":
                found[kind] = True
            elif kind != "all":
                found[kind] = float(number) if kind == "sparse" else int(number)
                _validation.positive(**{kind: found[kind]})
        except ValueError as error:
            raise _validation.invalid("train", text, EXAMPLE, function="parse") from error
    if not text.split() or ("lora" in found and {"norms", "sparse", "share"} & set(found)):
        raise _validation.invalid("train", text, f"{EXAMPLE}, but lora not with norms or sparse")
    return Choice(**found)


def save(
    folder: pathlib.Path, name: str, model: lm.Pretrained, params: Any, choice: Choice, whole: bool = True
) -> dict[str, int]:
    """Writes what was trained, an adapter of PEFT or a sparse delta, and the whole model; bytes of each.

    Args:
      folder: of the run; what a run that was stopped while writing has left is written anew.
      name: of the model as it began.
      params: `lm.trainable.merge` of what was trained; a value head of theirs is left out.
      whole: also write the model where there is an adapter or a delta.
    """
    params = processes.everywhere({part: x for part, x in params.items() if part != "value"})
    return processes.decided(lambda: _save(folder, name, model, params, choice, whole))


def _save(folder, name, model, params, choice, whole):
    model = model._replace(config=dataclasses.replace(model.config, value_head=False))
    paths = {}
    if choice.lora is not None:
        try:
            lm.lora.save(_empty(folder / "adapter"), params, model.config, name)
            paths["adapter"] = folder / "adapter"
        except ValueError as error:  # PEFT has no such factors for some architectures
            print(f"{error} Written is the whole model instead.")
        params = lm.lora.merge(params)
    if choice.sparse is not None:
        paths["delta"] = folder / "delta.safetensors"
        start = {part: x for part, x in model.params.items() if part != "value"}
        lm.delta.save(paths["delta"], start, params)
    if whole or not paths:
        paths["model"] = _empty(folder / "model")
        lm.save(paths["model"], model._replace(params=params))
    files = lambda path: [path] if path.is_file() else [*path.iterdir()]
    return {name: sum(file.stat().st_size for file in files(path)) for name, path in paths.items()}


def _empty(folder):
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
    return folder
