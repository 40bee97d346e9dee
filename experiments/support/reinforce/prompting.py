"""Questions as the tokens that a model is asked by, and its tokens as an answer."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import tokenizers

from experiments.support import Refusal
from experiments.support.data import tokenization
from experiments.support.reinforce.tasks import Problem
from proxlm import _validation, lm


def shots(prompt: str) -> int:
    """The number of solved problems in "shots:4", and 0 in "chat"; ValueError for anything else."""
    kind, _, number = prompt.partition(":")
    if prompt != "chat" and (kind != "shots" or not number.isdecimal() or not int(number)):
        raise _validation.invalid("prompt", prompt, '"chat", or "shots:4" for four solved problems')
    return int(number or 0)


def with_value_head(model: lm.Pretrained) -> lm.Pretrained:
    """The model with a critic on its last hidden states, which begins at 0."""
    config = dataclasses.replace(model.config, value_head=True)
    head = {"kernel": jnp.zeros(config.width), "bias": jnp.zeros(())}
    return model._replace(config=config, params={**model.params, "value": head})


@dataclasses.dataclass(frozen=True)
class Asker:
    """Writes the prompts of a task: solved problems in front, or the model's chat template.

    Attributes:
      model: with a tokenizer.
      shown: the solved problems; none asks by the chat template.
    """

    model: lm.Pretrained
    shown: tuple[Problem, ...]

    def __post_init__(self):
        if not self.shown and self.model.template is None:
            raise Refusal(
                "prompt: the model has no chat template; show it solved problems, as by --prompt shots:4"
            )

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """That of the model."""
        if self.model.tokenizer is None:
            raise Refusal("model: it has no tokenizer, so it cannot be asked")
        return self.model.tokenizer

    def prompts(self, problems: Sequence[Problem]) -> lm.Prompts:
        """Tokens `[N, P]` of the questions, padded on the left."""
        rows = [self._tokens(problem.question) for problem in problems]
        return lm.Prompts(*map(jnp.asarray, tokenization.left_padded(rows)))

    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: the model's, and every one with a line break after shots."""
        stops = set(self.model.stops)
        if self.shown:
            size = self.tokenizer.get_vocab_size()
            words = self.tokenizer.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
            stops |= {i for i, word in enumerate(words) if "\n" in word}
        return tuple(sorted(stops))

    def answers(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """The texts of responses `[B, R]`, their first lines after shots."""
        texts = tokenization.decode(self.tokenizer, tokens, mask)
        return [text.split("\n")[0].strip() if self.shown else text.strip() for text in texts]

    def _tokens(self, question):
        if not self.shown:
            return self.model.chat([{"role": "user", "content": question}])
        solved = "".join(f"{p.question} {p.answer}\n" for p in self.shown)
        return self.tokenizer.encode(solved + question, add_special_tokens=False).ids
