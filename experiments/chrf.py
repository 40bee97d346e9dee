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
    own = (hypothesis[:, None] == hypothesis[None]) & (hypothesis > 0)[:, None]
    other = (hypothesis[:, None] == reference[None]) & (hypothesis > 0)[:, None]
    sizes = jnp.sum(hypothesis > 0), jnp.sum(reference > 0)
    own_n, other_n = own, other
    precision = recall = orders = 0.0
    for n in range(1, ORDER + 1):
        if n > 1:
            own_n, other_n = (
                own[: -n + 1, : -n + 1] & own_n[1:, 1:],
                other[: -n + 1, : -n + 1] & other_n[1:, 1:],
            )
        counts = jnp.sum(own_n, axis=1), jnp.sum(other_n, axis=1)
        matches = jnp.sum(jnp.minimum(*counts) / jnp.maximum(counts[0], 1))
        grams = [jnp.maximum(size - n + 1, 0) for size in sizes]
        counted = (grams[0] > 0) & (grams[1] > 0)
        precision += jnp.where(counted, matches / jnp.maximum(grams[0], 1), 0.0)
        recall += jnp.where(counted, matches / jnp.maximum(grams[1], 1), 0.0)
        orders += counted
    weight = BETA**2
    below = (weight * precision + recall) * jnp.maximum(orders, 1)
    return jnp.where(
        below > 0, (1 + weight) * precision * recall / jnp.where(below > 0, below, 1), 0.0
    )
