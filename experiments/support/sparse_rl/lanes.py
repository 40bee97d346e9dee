"""Lanes: what is trained, by which optimizer, as one word each.

adam@5e-5           Adam on the last layers
l1:3e-4@1e-3        in its metric an ℓ1 penalty of strength 3e-4 on the change, at the rate 1e-3
l0:3e-9@1e-3        the number of changed weights instead
rows:3e-4@1e-3      the norms of the changes of rows, those of one output; ℓ1 where there are none
dual:3e-4@1e-3      ℓ1 with zeros that averaged gradients decide
norms@3e-3          Adam on the scales of the norms alone
l1_norms:1e-3@3e-3  ℓ1 on the changes of those scales alone
lora:1@1e-3         Adam on factors of rank 1 beside every kernel
sft@5e-5            Adam on the right answers to the same problems, without samples
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from proxlm import _validation, lm, penalties, transforms

KINDS = {"adam": False, "l1": True, "l1_norms": True, "l0": True, "rows": True, "dual": True, "norms": False}
KINDS |= {"lora": True, "sft": False}  # whether a number goes with it


@dataclasses.dataclass(frozen=True)
class Lane:
    """A parsed lane; `number` is its strength, its rank, or 0."""

    kind: str
    number: float
    rate: float

    @property
    def sparse(self) -> bool:
        """Whether most weights keep their bits."""
        return self.kind in ("l1", "l1_norms", "l0", "rows", "dual")

    @property
    def name(self) -> str:
        """The word without the rate."""
        return f"{self.kind}:{self.number:g}" if self.number else self.kind

    def split(self, key: jax.Array, params: Any, last: int) -> tuple[Any, lm.trainable.Frozen]:
        """Parts parameters in those of the last layers that are trained, and the rest."""
        kind = {"norms": "norms", "l1_norms": "norms", "lora": "factors"}.get(self.kind)
        if self.kind == "lora":
            params = lm.lora.init(key, params, int(self.number), pattern=".")
        return lm.trainable.split(
            params, lm.trainable.last_layers(last, lm.trainable.PATTERNS[kind] if kind else "")
        )

    def chain(self) -> optax.GradientTransformation:
        """Clips, and steps."""
        return optax.chain(optax.clip_by_global_norm(1.0), self._step())

    def _step(self):
        if not self.sparse:
            return optax.adam(self.rate)
        if self.kind == "dual":
            l1 = penalties.l1(self.number)
            made = lambda start: transforms.dual_averaging_adam(self.rate, penalties.translate(l1, start))
            return around_start(made)
        penalty = {"l0": penalties.l0, "rows": rows}.get(self.kind, penalties.l1)(self.number)
        return transforms.proximal_adam(self.rate, penalty, anchored=True)


def parse(text: str) -> Lane:
    """Reads a lane; ValueError for what is none.

    >>> parse("l1:3e-4@1e-3")
    Lane(kind='l1', number=0.0003, rate=0.001)
    """
    word, _, rate = text.partition("@")
    kind, colon, number = word.partition(":")
    try:
        if kind not in KINDS or bool(colon) != KINDS[kind]:
            raise ValueError(kind)
        lane = Lane(kind, float(number or 0), float(rate))
        _validation.positive(rate=lane.rate, number=lane.number if colon else None)
    except ValueError as error:
        expected = 'KIND@RATE or KIND:NUMBER@RATE, such as "adam@5e-5" and "l1:3e-4@1e-3"'
        raise _validation.invalid("lanes", text, expected, function="parse") from error
    return lane


def rows(strength: float) -> penalties.Penalty:
    """The norms of what goes into each output of a kernel, and ℓ1 for the scales of norms."""
    parts = {True: penalties.group_lasso(strength, axis=1), False: penalties.l1(strength)}
    return penalties.separable_sum(parts, lambda path, leaf: path.endswith("kernel"))


def around_start(make: Any) -> optax.GradientTransformationExtraArgs:
    """The transformation `make(start)`, start the parameters that `init` is given, kept in the state."""

    def init(params):
        return jax.tree.map(jnp.copy, params), make(params).init(params)

    def update(updates, state, params=None, **extra_args):
        start, inner = state
        updates, inner = make(start).update(updates, inner, params, **extra_args)
        return updates, (start, inner)

    return optax.GradientTransformationExtraArgs(init, update)
