"""The language models that `overoptimisation` and `mirror_lm` start from, learnt from Shakespeare."""

import functools

import jax
import jax.numpy as jnp

from experiments.support.data import corpora, tokenization
from experiments.support.models import language_model, small_lm
from proxlm import lm

BATCH = 32
PARTS = 4  # pieces in which a stage is saved


def learn(run, config):
    """The reference, the judge of fluency, their shape, and the token of a line break."""
    text = corpora.shakespeare(corpora.TINY_SHAKESPEARE, folder=run.data)
    alphabet = tokenization.Characters(text)
    model = small_lm.shape(config, alphabet)
    print(f"{lm.num_params(model):,} parameters")
    tokens = alphabet.encode(text)
    border = int(0.9 * len(tokens))
    cut = functools.partial(tokenization.random_windows, length=config.context)
    evaluate = language_model.make_evaluate(cut(tokens[border:], seed=1, shape=(512,)), model)

    def learn_one(name, seed):
        windows = cut(tokens[:border], seed=seed, shape=(config.lm_steps, BATCH))
        return small_lm.learn(run, name, seed, windows, model, config, evaluate)

    params = learn_one("language model", config.seed + 2)
    judge = learn_one("judge of fluency", config.seed + 3)
    return params, judge, model, int(alphabet.encode("\n")[0])


def copies(tree, shape: tuple[int, ...]):
    """Copies of every leaf along new axes in front."""
    return jax.tree.map(lambda x: jnp.tile(x, (*shape, *(1,) * jnp.ndim(x))), tree)
