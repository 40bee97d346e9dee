"""GRPO on a folder of transformers: `python -m experiments.how_to.grpo_folder MODEL questions.jsonl OUT`.

By LoRA; TRL writes it as GRPOTrainer(model, reward_funcs). Lines have a "question" and an "answer".
"""

import json
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np
import optax

from proxlm import lm
from proxlm.policy import ppo, recipes, rewards


class Asked(NamedTuple):
    tokens: np.ndarray
    mask: np.ndarray
    row: np.ndarray  # of the file; whatever stands beside tokens and mask reaches the reward


def main(folder, questions, out, iterations=20, tokens=8, batch=4):
    model = lm.load(folder)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    rows = [json.loads(line) for line in pathlib.Path(questions).read_text("utf-8").splitlines()]
    tokenizer.enable_padding(direction="left")
    encoded = tokenizer.encode_batch([row["question"] for row in rows])
    tokens_of, mask = ([getattr(e, kind) for e in encoded] for kind in ("ids", "attention_mask"))
    asked = Asked(np.array(tokens_of), np.array(mask) == 1, np.arange(len(rows)))
    prompts = lambda key: jax.tree.map(lambda x: x[jax.random.permutation(key, len(rows))[:batch]], asked)

    def right(completions, row):  # any Python you like
        return [rows[i]["answer"] in text for i, text in zip(row, completions, strict=True)]

    trained, frozen = lm.lora.split(lm.lora.init(jax.random.key(0), model.params, rank=8))
    sampling = lm.SamplingConfig(stop_token=model.stops or None)
    actor = lm.make_actor(model.config, tokens, critic=False, sampling=sampling)
    actor = lm.trainable.make_actor(actor, frozen)
    config, optimizer = recipes.make("grpo", group_size=8, num_minibatches=1), optax.adam(1e-4)
    reward = rewards.of_texts(right, tokenizer.decode)
    step = ppo.make_host_step(actor, reward, prompts, optimizer, config)
    state, means = ppo.init({"policy": trained}, optimizer, config), []
    for key in jax.random.split(jax.random.key(1), iterations):
        state, metrics = step(state, key)
        means.append(float(metrics.reward))
    params = lm.trainable.merge(state.params["policy"], frozen)
    lm.save(out, model._replace(params=lm.lora.merge(params)))
    return means


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2], sys.argv[3]))
