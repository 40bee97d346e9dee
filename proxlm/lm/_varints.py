"""Integers in as few bytes as they need: seven bits a byte, the lowest first, as in LEB128."""

import numpy as np

LONGEST = 10  # bytes of a number of 64 bits


def encode(numbers: np.ndarray) -> np.ndarray:
    """The bytes of unsigned integers, uint8.

    >>> encode(np.array([3, 128, 300])).tolist()
    [3, 128, 1, 172, 2]
    """
    numbers = np.asarray(numbers, np.uint64)
    lengths = np.ones(numbers.shape, np.int64)
    for k in range(1, LONGEST):
        lengths += numbers >= np.uint64(1 << 7 * k)
    ends = np.cumsum(lengths)
    data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    for k in range(int(lengths.max(initial=0))):
        has = lengths > k
        more = (lengths[has] > k + 1).astype(np.uint8) << 7
        data[(ends - lengths)[has] + k] = (numbers[has] >> np.uint64(7 * k)).astype(np.uint8) & 127 | more
    return data


def decode(data: np.ndarray) -> np.ndarray:
    """The inverse of `encode`, uint64; ValueError for bytes that it does not write.

    >>> decode(np.array([3, 128, 1, 172, 2], np.uint8)).tolist()
    [3, 128, 300]
    """
    if not len(data):
        return np.zeros(0, np.uint64)
    ends = np.flatnonzero(data < 128)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise ValueError("a number is cut")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > LONGEST:
        raise ValueError(f"a number has {lengths.max()} bytes")
    places = (np.arange(len(data)) - np.repeat(starts, lengths)).astype(np.uint64)
    return np.add.reduceat((data & 127).astype(np.uint64) << (np.uint64(7) * places), starts)
