"""Files that a kill leaves whole, and folders that one process at a time writes to."""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from experiments.support import Refusal
from experiments.support.run import processes

LOCK = ".lock"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file to write; a kill leaves the old content or the whole new one, never a part.

    Of several processes the first alone writes it.
    """
    if not processes.is_first():
        yield io.BytesIO()
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text in UTF-8 by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Makes this process the one writer of a folder; the lock ends with the process at the latest.

    Raises:
      Refusal: another process is writing, and `wait` is false.
    """
    if not processes.is_first():
        yield
        return
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "of another user"
            if not wait:
                raise Refusal(f"process {owner} is writing {folder}: wait for its end, or stop it") from None
            print(f"waiting for process {owner}, which is writing {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
