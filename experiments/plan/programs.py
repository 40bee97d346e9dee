"""Compiled programs: what one device computes, moves and sends, loops counted as often as they run."""

import collections
import dataclasses
import math
import re

# Bytes of a number, where they are not 4.
ITEMSIZE = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}
# How often the bytes of a result pass a link of a ring, at most.
COLLECTIVES = {
    "all-gather": 1,
    "all-reduce": 2,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "collective-permute": 1,
}
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass
class Work:
    """The work of one device.

    Attributes:
      flops: of matrix products.
      product_bytes: that matrix products read and write.
      sent: bytes over links by the kind of collective.
      count: how often each kind runs.
    """

    flops: float = 0.0
    product_bytes: float = 0.0
    sent: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    count: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Work", times: int) -> None:
        """Adds another's, so many times."""
        self.flops += times * other.flops
        self.product_bytes += times * other.product_bytes
        for own, theirs in ((self.sent, other.sent), (self.count, other.count)):
            own.update({kind: times * number for kind, number in theirs.items()})


def work(text: str) -> Work:
    """The work of a program, of the text of its compiled HLO.

    >>> work('''ENTRY %main (a: f32[2,3]) -> f32[2,2] {
    ...   %a = f32[2,3]{1,0} parameter(0)
    ...   ROOT %b = f32[2,2]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
    ... }''').flops
    24.0
    """
    computations, entry = _computations(text)
    done: dict[str, Work] = {}

    def of(name):
        if name not in done:
            done[name] = total = Work()
            shapes = {line[0]: line[1] for line in computations[name]}
            for line in computations[name]:
                _add_line(total, line, shapes, of)
        return done[name]

    return of(entry)


def num_bytes(shape: str) -> int:
    """Bytes of a shape, a tuple's too.

    >>> num_bytes("(f32[2,3]{1,0}, pred[4])")
    28
    """
    sizes = ((ITEMSIZE.get(kind, 4), _dims(dims)) for kind, dims in _ARRAY.findall(shape))
    return sum(size * math.prod(dims) for size, dims in sizes)


def _computations(text):
    """Computation ↦ lines (name, shape, operation, the rest), and the name of the entry."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found[head[1]] = []
            entry = head[1] if line.startswith("ENTRY") else entry
        elif current is not None and (parts := _LINE.match(line)):
            current.append(parts.groups())
    return found, entry


def _add_line(total, line, shapes, of):
    _, shape, operation, rest = line
    operation = operation.removesuffix("-start")
    if operation == "dot":
        operands = [shapes[name] for name in re.findall(r"%([\w.\-]+)", rest.partition(")")[0])]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        sizes = _dims(_ARRAY.findall(operands[0])[0][1])
        inner = math.prod(sizes[i] for i in _dims(contracted[1] if contracted else ""))
        total.flops += 2.0 * inner * math.prod(_dims(_ARRAY.findall(shape)[0][1]))
        total.product_bytes += sum(map(num_bytes, [shape, *operands]))
    elif operation in COLLECTIVES:
        total.sent[operation] += COLLECTIVES[operation] * num_bytes(shape)
        total.count[operation] += 1
    elif operation in ("fusion", "while", "call", "conditional"):
        trips = _TRIPS.search(rest)
        branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
        names = _CALLED.findall(rest) + re.findall(r"%([\w.\-]+)", branches[1] if branches else "")
        for name in names:
            total.add(of(name), int(trips[1]) if trips else 1)


def _dims(text):
    return [int(size) for size in text.split(",") if size]
