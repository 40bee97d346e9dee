"""GGUF files: metadata and tensors, every count and offset checked against the file's size before use."""

import dataclasses
import math
import mmap
import os
import pathlib
import struct
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

from proxlm import _validation

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LENGTH = struct.Struct("<Q")
KINDS = (*SCALARS, STRING, ARRAY)
# Far beyond any model's; they bound the memory that names of few bytes each could take.
MOST_NAMES, MOST_STRINGS, LONGEST_TEXT = 2**16, 2**20, 2**20
READ = (
    "general.architecture",
    "general.alignment",
    "llama.",
    "qwen",
    "gemma",
    "tokenizer.",
)  # the rest is passed
DAMAGED = "The file is truncated or damaged: fetch it again."
Buffer = mmap.mmap | bytes


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, decoded to float32 when NumPy asks for its values."""

    name: str
    shape: tuple[int, ...]
    kind: int  # of gguf.GGMLQuantizationType
    start: int
    num_bytes: int
    data: Buffer

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values, of which none may be NaN or infinite."""
        import gguf

        kind = gguf.GGMLQuantizationType(self.kind)
        raw = np.frombuffer(self.data, np.uint8, self.num_bytes, self.start)
        raw = raw.reshape(*self.shape[:-1], -1)
        try:
            with np.errstate(all="ignore"):
                values = gguf.quants.dequantize(raw, kind)
        except NotImplementedError:
            raise invalid(f"type of tensor {self.name}", kind.name, "one that gguf decodes") from None
        if not np.isfinite([values.min(), values.max()]).all():
            raise invalid(f"tensor {self.name}", values[~np.isfinite(values)][0].item(), "finite", DAMAGED)
        values = values.reshape(self.shape)
        # A view of the file would change with it.
        return values.astype(dtype or np.float32, copy=kind == gguf.GGMLQuantizationType.F32)


@dataclasses.dataclass(frozen=True)
class Strings:
    """An array of strings, decoded as it is iterated over."""

    name: str
    start: int
    count: int
    data: Buffer

    def __iter__(self) -> Iterator[str]:
        """Yields them in order."""
        cursor = Cursor(self.data, self.start)
        return (cursor.text(self.name) for _ in range(self.count))


class Cursor:
    """A position in a file, which cannot pass the file's end."""

    def __init__(self, data: Buffer, offset: int = 0):
        """Begins at an offset."""
        self.data, self.offset = data, offset

    def require(self, name: str, count: int, size: int) -> None:
        """Checks that so many items, of so many bytes or more each, can still follow."""
        left = len(self.data) - self.offset
        if count * size > left:
            raise invalid(name, count, f"at most {left // size}, as {left} bytes are left", DAMAGED)

    def skip(self, name: str, count: int, size: int = 1) -> int:
        """Passes so many items and returns where they begin."""
        self.require(name, count, size)
        self.offset += count * size
        return self.offset - count * size

    def number(self, name: str, kind: str) -> Any:
        """The next number, of a kind of `struct`."""
        size = struct.calcsize(f"<{kind}")
        return struct.unpack_from(f"<{kind}", self.data, self.skip(f"bytes of {name}", size))[0]

    def skip_text(self, name: str) -> int:
        """Passes a string and returns where its bytes begin."""
        start, size = self.offset + 8, len(self.data)
        length = LENGTH.unpack_from(self.data, self.offset)[0] if start <= size else size
        if start + length > size:  # by which of the two, the slow way says
            return self.skip(f"length of {name}", self.number(name, "Q"))
        self.offset = start + length
        return start

    def text(self, name: str) -> str:
        """The next string."""
        start = self.skip_text(name)
        if self.offset - start > LONGEST_TEXT:
            raise invalid(f"length of {name}", self.offset - start, f"at most {LONGEST_TEXT}", DAMAGED)
        content = self.data[start : self.offset]
        try:
            return str(content, "utf-8")
        except UnicodeDecodeError:
            raise invalid(name, content, "UTF-8", DAMAGED) from None

    def value(self, name: str, kind: int) -> Any:
        """The next value of the metadata, of one of GGUF's kinds."""
        if kind in SCALARS:
            return self.number(name, SCALARS[kind])
        if kind == STRING:
            return self.text(name) if name.startswith(READ) else self.skip_text(name)
        kind, count = self.number(name, "I"), self.number(name, "Q")
        if kind in SCALARS:
            start = self.skip(f"length of {name}", count, struct.calcsize(f"<{SCALARS[kind]}"))
            return np.frombuffer(self.data, f"<{SCALARS[kind]}", count, start)
        if kind != STRING:
            raise invalid(f"type of the items of {name}", kind, "a scalar or a string")
        self.require(f"length of {name}", count, 8)
        if count > MOST_STRINGS:
            raise invalid(f"length of {name}", count, f"at most {MOST_STRINGS}")
        strings = Strings(name, self.offset, count, self.data)
        for _ in range(count):
            self.skip_text(name)
        return strings


def invalid(name: str, given: Any, expected: str, remedy: str = "") -> ValueError:
    """The error of an invalid field, its value cut short."""
    shown = " ".join(repr(given).split())
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    return _validation.invalid(name, _validation.Verbatim(shown), expected, remedy)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors by name; the values of the tensors stay in the file until asked for."""
    with pathlib.Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    if data[:4] != MAGIC:
        raise invalid("magic", data[:4], repr(MAGIC), "The file is no GGUF file.")
    cursor = Cursor(data, 4)
    version = cursor.number("version", "I")
    if version not in VERSIONS:
        raise invalid("version", version, f"one of {VERSIONS}, in little-endian order")
    num_tensors, num_fields = cursor.number("tensor_count", "Q"), cursor.number("kv_count", "Q")
    for name, count, size in (("tensor_count", num_tensors, 32), ("kv_count", num_fields, 13)):
        cursor.require(name, count, size)
        if count > MOST_NAMES:
            raise invalid(name, count, f"at most {MOST_NAMES}")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        name = cursor.text("name of a field")
        kind = cursor.number(f"type of {name}", "I")
        if kind not in KINDS:
            raise invalid(f"type of {name}", kind, f"one of {KINDS}", DAMAGED)
        if name in fields:
            raise invalid(f"name of field {len(fields)}", name, "given once", DAMAGED)
        fields[name] = cursor.value(name, kind)
    return fields, _tensors(cursor, num_tensors, fields.get("general.alignment", ALIGNMENT))


def _tensors(cursor: Cursor, count: int, alignment: Any) -> dict[str, Tensor]:
    """Tensors by name, from their descriptions, which follow one another."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise invalid("general.alignment", alignment, "a power of two")
    found = [_tensor(cursor) for _ in range(count)]
    start = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    end, last = 0, "the descriptions"
    for tensor in sorted(found, key=lambda tensor: tensor.start):
        offset = tensor.start
        if offset % alignment or offset < end:
            expected = f"a multiple of {alignment} after {last}, which ends at {end}"
            raise invalid(f"offset of tensor {tensor.name}", offset, expected, DAMAGED)
        end, last = offset + tensor.num_bytes, tensor.name
        if start + end > len(cursor.data):
            expected = f"at most {len(cursor.data) - start}, the bytes of all tensors"
            raise invalid(f"end of tensor {tensor.name}", end, expected, DAMAGED)
        if tensor.name in tensors:
            raise invalid("name of a tensor", tensor.name, "given once", DAMAGED)
        tensors[tensor.name] = dataclasses.replace(tensor, start=start + offset)
    return tensors


def _tensor(cursor: Cursor) -> Tensor:
    """The next description; `start` counts from the end of all of them."""
    import gguf

    name = cursor.text("name of a tensor")
    num_axes = cursor.number(f"axes of tensor {name}", "I")
    if not 1 <= num_axes <= 4:
        raise invalid(f"axes of tensor {name}", num_axes, "1 to 4", DAMAGED)
    sizes = [cursor.number(f"shape of tensor {name}", "Q") for _ in range(num_axes)]
    kind = cursor.number(f"type of tensor {name}", "I")
    if kind not in iter(gguf.GGMLQuantizationType):
        raise invalid(f"type of tensor {name}", kind, "one that gguf knows", "Install a newer gguf.")
    block, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    if min(sizes) < 1 or sizes[0] % block:
        expected = f"sizes of at least 1, the first a multiple of {block}"
        raise invalid(f"shape of tensor {name}", sizes, expected, DAMAGED)
    offset = typing.cast(int, cursor.number(f"offset of tensor {name}", "Q"))
    num_bytes *= math.prod(sizes) // block
    return Tensor(name, tuple(reversed(sizes)), kind, offset, num_bytes, cursor.data)
