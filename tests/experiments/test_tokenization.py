"""Text to tokens and back, and windows cut by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from experiments.support.data import tokenization

TEXTS = ["the film is good", "the film is not good", "a good good film"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_bpe(TEXTS, 270)


def round_trip(tokenizer, texts):
    rows = tokenization.encode(tokenizer, texts)
    return [tokenization.decode(tokenizer, row[None], row[None] >= 0)[0] for row in rows]


@hypothesis.settings(max_examples=25)
@hypothesis.given(strategies.text(strategies.characters(codec="utf-8"), max_size=20).map(tokenization.tidy))
def test_any_text_with_single_blanks_comes_back(tokenizer, text):
    assert round_trip(tokenizer, [text]) == [text]


def test_white_space_becomes_single_blanks(tokenizer):
    assert round_trip(tokenizer, [" the\tfilm\n\n is  good \n", ""]) == ["the film is good", ""]


def test_end_comes_first_and_last_and_nowhere_else(tokenizer):
    for row in tokenization.encode(tokenizer, [*TEXTS, "", "ünseen", "<|end|"]):
        assert row.dtype == np.int32
        assert row[0] == row[-1] == tokenization.END
        assert not (row[1:-1] == tokenization.END).any()


def test_pairs_that_recur_become_one_token(tokenizer):
    (row,) = tokenization.encode(tokenizer, ["the film"])
    assert tokenizer.get_vocab_size() == 270
    assert len(row) < 2 + len("the film")
    # Without room for a merge there is one token a byte.
    bytes_only = tokenization.train_bpe(TEXTS, 257)
    assert len(tokenization.encode(bytes_only, ["the film"])[0]) == 2 + len("the film")


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size must be a number ≥ 257, got 256"):
        tokenization.train_bpe(TEXTS, 256)


def test_decoding_leaves_out_masked_tokens_and_end(tokenizer):
    (row,) = tokenization.encode(tokenizer, ["a film"])
    tokens = np.stack([row, row])
    mask = np.ones(tokens.shape, bool)
    mask[1, 2:] = False
    assert tokenization.decode(tokenizer, tokens, mask) == ["a film", "a"]


# Two documents between their END, in one line: 0 1 2 3 4 5 0 7 8 0.
DOCUMENTS = [np.array([0, 1, 2, 3, 4, 5, 0]), np.array([0, 7, 8, 0])]


def test_windows_go_from_the_beginning_of_a_document_into_the_next():
    # Inputs are 4 tokens each: 0 1 2 3 and 4 5 0 7 of the first document, 0 7 8 0 has no target.
    rows = tokenization.windows(DOCUMENTS, 4)
    assert rows.tolist() == [[0, 1, 2, 3, 4], [4, 5, 0, 7, 8]]
    assert tokenization.windows(DOCUMENTS[::-1], 4).tolist() == [[0, 7, 8, 0, 1], [0, 1, 2, 3, 4]]


def test_every_token_but_the_first_is_a_target_once_and_the_last_is_end():
    # Documents of 6 and 3 tokens with their END fill windows of 3.
    rows = tokenization.windows(DOCUMENTS, 3)
    assert rows.tolist() == [[0, 1, 2, 3], [3, 4, 5, 0], [0, 7, 8, 0]]
    assert rows[:, 1:].reshape(-1).tolist() == [1, 2, 3, 4, 5, 0, 7, 8, 0]


def test_of_every_document_there_are_at_most_so_many_windows():
    rows = tokenization.windows(DOCUMENTS, 2, most=1)
    assert rows.tolist() == [[0, 1, 2], [0, 7, 8]]
    assert len(tokenization.windows(DOCUMENTS, 2, most=9)) == 4


def test_windows_need_text_that_is_long_enough():
    assert tokenization.windows(DOCUMENTS, 9).shape == (1, 10)
    with pytest.raises(ValueError, match=r"10 tokens in all: expected length \+ 1 = 11"):
        tokenization.windows(DOCUMENTS, 10)
    with pytest.raises(ValueError, match="documents is empty"):
        tokenization.windows([], 1)


def test_random_windows_are_all_there_are_up_to_the_last_token():
    rows = tokenization.random_windows(np.arange(5), 3, seed=0, shape=(4, 10))
    assert rows.shape == (4, 10, 4)
    assert np.unique(rows.reshape(-1, 4), axis=0).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_openings_are_the_first_tokens_of_documents_that_have_them():
    rows, kept = tokenization.openings(DOCUMENTS, 3)
    assert (rows.tolist(), kept) == ([[0, 1, 2, 3]], [0])
    rows, kept = tokenization.openings(DOCUMENTS, 2)
    assert (rows.tolist(), kept) == ([[0, 1, 2], [0, 7, 8]], [0, 1])


def test_openings_need_a_document_that_is_long_enough():
    # The END after a document is none of its tokens.
    with pytest.raises(ValueError, match="no document has 6 tokens, the longest of 2 has 5"):
        tokenization.openings(DOCUMENTS, 6)
    with pytest.raises(ValueError, match="no document has 1 tokens, the longest of 0 has 0"):
        tokenization.openings([], 1)


@hypothesis.given(strategies.text(min_size=1, max_size=30))
def test_characters_come_back(text):
    characters = tokenization.Characters(text)
    tokens = characters.encode(text)
    assert characters.decode(tokens) == text
    assert {*tokens.tolist()} == {*range(len({*text}))}


def test_characters_are_numbered_in_order():
    characters = tokenization.Characters("hello\n")
    assert characters.alphabet == ["\n", "e", "h", "l", "o"]
    assert characters.encode("hole").tolist() == [2, 4, 3, 1]
    assert characters.encode("").shape == (0,)


def test_a_character_never_seen_is_named():
    with pytest.raises(ValueError, match="the character 'z' does not occur"):
        tokenization.Characters("abc").encode("az")
