"""GRPO on a folder of transformers: `python -m experiments.how_to.grpo_folder MODEL questions.jsonl OUT`."""

import collections
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import optax

from proxlm import lm
from proxlm.policy import ppo, recipes, rewards

Asked = collections.namedtuple("Asked", "tokens mask answer")  # all columns reach the reward
right = lambda completions, answer: [a in text for a, text in zip(answer, completions, strict=True)]


def main(folder, questions, out, iterations=20, tokens=8, batch=4):
    model: Any = lm.load(folder)
    rows = [json.loads(line) for line in pathlib.Path(questions).read_text("utf-8").splitlines()]
    prompts = model.prompts([row["question"] for row in rows])
    data = Asked(prompts.tokens, prompts.mask, np.array([row["answer"] for row in rows]))
    draw = lambda key: jax.tree.map(lambda x: x[jax.random.permutation(key, len(rows))[:batch]], data)
    trained, fixed = lm.lora.split(lm.lora.init(jax.random.key(0), model.params, rank=8))
    sampling = lm.SamplingConfig(stop_token=model.stops or None)
    actor = lm.make_actor(model.config, tokens, critic=False, sampling=sampling)
    actor = lm.trainable.make_actor(actor, fixed)
    config, optimizer = recipes.make("grpo", num_minibatches=1), optax.adam(1e-4)
    reward = rewards.of_texts(right, model.tokenizer.decode)  # in TRL: GRPOTrainer(model, reward_funcs)
    state = ppo.init({"policy": trained}, optimizer, config)
    for turn in ppo.iterate(state, jax.random.key(1), iterations, actor, reward, draw, optimizer, config):
        yield float(turn.metrics.reward)
    lm.save(out, model._replace(params=lm.lora.merge(lm.trainable.merge(turn.state.params["policy"], fixed))))


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2], sys.argv[3]))
