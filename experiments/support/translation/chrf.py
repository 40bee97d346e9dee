"""chrF of a translation, as a pure function of tokens: a reward that jit, vmap and scan can hold.

chrF compares the character n-grams of orders 1 to 6, blanks left out, of a text and a reference:

    chrF = (1 + β²)·P·R / (β²·P + R),   β = 2

with P and R the mean precision and recall over the orders (Popović 2015). This is sacrebleu's
sentence chrF as long as each token is whole characters; of a character that a byte-level BPE
cuts into pieces, each piece counts as one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

ORDER = 6
BETA = 2.0


def characters(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """The characters of every token, blanks left out: code points `[V, C]`, 0 where it has less.

    The end token, 0, has none.
    """
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    points = [[ord(c) for c in "".join(text.split())] for text in texts]
    points[0] = []
    width = max(map(len, points))
    return np.array([row + [0] * (width - len(row)) for row in points], np.int32)


def spell(tokens: jax.Array, mask: jax.Array, table: jax.Array, length: int) -> jax.Array:
    """The characters of one row of tokens without gaps: `[T]`, bool `[T]` -> `[length]`, then 0s.

    What does not fit into `length` is left out.

    >>> spell(jnp.array([1, 2]), jnp.ones(2, bool), jnp.array([[0, 0], [7, 0], [8, 9]]), 4).tolist()
    [7, 8, 9, 0]
    """
    points = jnp.where(mask[:, None], jnp.asarray(table)[tokens], 0).reshape(-1)
    real = points > 0
    places = jnp.where(real, jnp.cumsum(real) - 1, length)
    return jnp.zeros(length, jnp.int32).at[places].set(points, mode="drop")


def score(hypothesis: jax.Array, reference: jax.Array) -> jax.Array:
    """chrF in [0, 1] of one text, `[L]` code points and then 0s, against one reference `[M]`.

    An n-gram counts as often as both texts have it: over the places i of the hypothesis the
    matches sum to Σᵢ min(own(i), other(i)) / own(i), with own and other how often the n-gram at i
    occurs in either text. Both come from matrices of equal characters, whose diagonals are
    joined one place further for each order.

    >>> bool(score(jnp.array([5, 6, 7, 0]), jnp.array([5, 6, 7, 0])) == 1)
    True
    """
    texts = hypothesis, reference
    equal = [(hypothesis[:, None] == text[None]) & (hypothesis > 0)[:, None] for text in texts]
    sizes = [jnp.sum(text > 0) for text in texts]

    def order(same, n):
        own, other = (jnp.sum(matrix, axis=1) for matrix in same)
        matches = jnp.sum(jnp.minimum(own, other) / jnp.maximum(own, 1))
        grams = jnp.maximum(jnp.stack(sizes) - n, 0)
        further = [jnp.pad(matrix[1:, 1:], (0, 1)) for matrix in same]
        same = [matrix & more for matrix, more in zip(equal, further, strict=True)]
        return same, (matches / jnp.maximum(grams, 1), jnp.all(grams > 0))

    _, (shares, counted) = jax.lax.scan(order, equal, jnp.arange(ORDER))
    total = jnp.sum(jnp.where(counted[:, None], shares, 0.0), axis=0)
    precision, recall = total / jnp.maximum(jnp.sum(counted), 1)
    below = BETA**2 * precision + recall
    return (1 + BETA**2) * precision * recall / jnp.where(below > 0, below, 1.0)
