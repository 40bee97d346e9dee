"""Laws of proximal operators, tried on a penalty.

- `checker`: `check` returns a `Report`, a `Law` a line
"""

from proxlm.penalties.checking import checker

__all__ = ["checker"]
