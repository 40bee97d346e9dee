"""Text to tokens and back, and windows cut by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from experiments import tokenization

TEXTS = ["the film is good", "the film is not good", "a good good film"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_bpe(TEXTS, 270)


def round_trip(tokenizer, texts):
    rows = tokenization.encode(tokenizer, texts)
    return [tokenization.decode(tokenizer, row[None], row[None] >= 0)[0] for row in rows]


@hypothesis.given(
    strategies.text(strategies.characters(codec="utf-8"), max_size=20).map(tokenization.tidy)
)
def test_any_text_with_single_blanks_comes_back(tokenizer, text):
    assert round_trip(tokenizer, [text]) == [text]


def test_white_space_becomes_single_blanks(tokenizer):
    assert round_trip(tokenizer, [" the\tfilm\n\n is  good \n", ""]) == ["the film is good", ""]


def test_end_comes_first_and_nowhere_else(tokenizer):
    for row in tokenization.encode(tokenizer, [*TEXTS, "", "ünseen"]):
        assert row.dtype == np.int32
        assert row[0] == tokenization.END
        assert not (row[1:] == tokenization.END).any()


def test_pairs_that_recur_become_one_token(tokenizer):
    (row,) = tokenization.encode(tokenizer, ["the film"])
    assert tokenizer.get_vocab_size() == 270
    assert len(row) < 1 + len("the film")
    # Without room for a merge there is one token a byte.
    bytes_only = tokenization.train_bpe(TEXTS, 257)
    assert len(tokenization.encode(bytes_only, ["the film"])[0]) == 1 + len("the film")


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=256: expected at least 257"):
        tokenization.train_bpe(TEXTS, 256)


def test_decoding_leaves_out_masked_tokens_and_end(tokenizer):
    (row,) = tokenization.encode(tokenizer, ["a film"])
    tokens = np.stack([row, row])
    mask = np.ones(tokens.shape, bool)
    mask[1, 2:] = False
    assert tokenization.decode(tokenizer, tokens, mask) == ["a film", "a"]


def test_windows_share_one_token_and_drop_the_remainder():
    # Inputs are 4 tokens each, so 10 tokens give two windows, which read 0..3 and 4..7.
    rows = tokenization.windows([np.arange(10)], 4)
    assert rows.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_windows_of_every_document_are_whole_and_at_most_so_many():
    documents = [np.arange(7), np.arange(10, 12), np.arange(20, 23)]
    rows = tokenization.windows(documents, 2)
    assert rows.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [20, 21, 22]]
    assert tokenization.windows(documents, 2, most=1).tolist() == [[0, 1, 2], [20, 21, 22]]


def test_windows_need_one_document_that_is_long_enough():
    assert tokenization.windows([np.arange(5)], 4).shape == (1, 5)
    with pytest.raises(ValueError, match=r"no document has length \+ 1 = 5 tokens"):
        tokenization.windows([np.arange(4), np.arange(2)], 4)
    with pytest.raises(ValueError, match="no document"):
        tokenization.windows([], 1)


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
