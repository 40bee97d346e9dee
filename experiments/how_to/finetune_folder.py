"""LoRA on a folder of transformers: `python -m experiments.how_to.finetune_folder MODEL texts.jsonl OUT`.

Each line has a "prompt" and a "response"; the loss is that of the responses. transformers opens OUT."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

from proxlm import lm, losses, training


def main(folder, texts, out, steps=40):
    model, rows = lm.load(folder), []
    tokenizer = model.tokenizer
    assert tokenizer is not None
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    for line in map(json.loads, pathlib.Path(texts).read_text("utf-8").splitlines()):
        prompt, response = encode(line["prompt"]), [*encode(line["response"]), *model.stops[:1]]
        rows.append((prompt + response, [False] * len(prompt) + [True] * len(response)))
    pad = lambda part, length: part + [0] * (length - len(part))
    tokens, judged = (jnp.array([pad(row[i], max(len(r[0]) for r in rows)) for row in rows]) for i in (0, 1))
    trained, frozen = lm.lora.split(lm.lora.init(jax.random.key(0), model.params, rank=8))

    def loss(trained, _):
        logits = lm.apply(lm.trainable.merge(trained, frozen), tokens[:, :-1], model.config)
        return jnp.sum(losses.next_token(logits, tokens[:, 1:]) * judged[:, 1:]) / judged[:, 1:].sum()

    step = training.make_step(loss, optimizer := optax.adam(1e-2))
    state, metrics = jax.lax.scan(step, training.init(trained, optimizer), jnp.arange(steps))
    lm.save(out, model._replace(params=lm.lora.merge(lm.trainable.merge(state.params, frozen))))
    return metrics.loss


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2], sys.argv[3]))
