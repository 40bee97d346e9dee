"""Checks on arguments, made before any computation, with one form of message.

    function: argument must be <what was expected>, got <what was given>. <remedy>

Shapes and dtypes are static and always checked. The value of a number is checked only when it is known,
so that hyper-parameters may be traced by `jit`, `vmap` and `grad`. `at_least`, `positive` and `within` take
one number or array, and let None pass; `tree_at_least` and `tree_positive` take a tree of these, as strengths
and step sizes may be, and refuse None. This package imports nothing else of proxlm.
"""

from proxlm._validation._annotations import typed
from proxlm._validation._arrays import boolean, floats, one_sequence, same_shape, scalar
from proxlm._validation._message import NUMBERS, Verbatim, invalid, is_known, is_real
from proxlm._validation._numbers import (
    at_least,
    finite,
    integer,
    is_integer,
    one_of,
    positive,
    to_int,
    within,
)
from proxlm._validation._objects import a_function, an_optimizer, is_pure
from proxlm._validation._trees import arrays, known, tree_at_least, tree_finite, tree_positive

__all__ = [
    "NUMBERS",
    "Verbatim",
    "a_function",
    "an_optimizer",
    "arrays",
    "at_least",
    "boolean",
    "finite",
    "floats",
    "integer",
    "invalid",
    "is_integer",
    "is_known",
    "is_pure",
    "is_real",
    "known",
    "one_of",
    "one_sequence",
    "positive",
    "same_shape",
    "scalar",
    "to_int",
    "tree_at_least",
    "tree_finite",
    "tree_positive",
    "typed",
    "within",
]
