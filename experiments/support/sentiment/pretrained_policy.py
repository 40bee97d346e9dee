"""Stage (c) with a pretrained language model: answers judged as texts, a few of its weights changed.

The reward model and the judges are those of the reviews' own tokens, so that what the pretrained model
writes is decoded by its tokenizer and encoded by theirs.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.data import tokenization
from experiments.support.models import pretrained, reward_model, trained_part
from experiments.support.reinforce import learning
from experiments.support.run import supervised
from experiments.support.sentiment import report
from proxlm import lm, penalties, transforms
from proxlm.policy import KL, ppo, recipes

LAST = 8  # layers that are trained
GAE_LAMBDA = 0.8  # of advantages, as discount of rewards to go
KL_TARGET = 17.0  # nats per response
KL_HORIZON = 96.0  # responses over which the weight of the KL adapts
EPOCHS, MINIBATCHES = 2, 2  # of an iteration
LAST_RATE = 0.1  # of the first
PROMPTS = 4096  # reviews that open them
JUDGED = 128  # held-out openings, at most


class Language(NamedTuple):
    """A pretrained model in its two parts, and what reads its texts.

    Attributes:
      model: with a tokenizer.
      trained: the last layers as they began.
      frozen: the others.
      parts: of an iteration, jitted.
      positive: texts and whether they ended ↦ P(positive), `[B]`.
    """

    model: lm.Pretrained
    trained: Any
    frozen: lm.trainable.Frozen
    parts: learning.Parts
    positive: Any


def make_optimizer(config) -> optax.GradientTransformation:
    """Adam at a falling rate, in its metric an ℓ1 pull to where the weights began.

    So few of them change, and the others are exactly as they were.
    """
    rate, steps = config.learning_rate, EPOCHS * MINIBATCHES * config.iterations
    falling = optax.linear_schedule(rate, LAST_RATE * rate, steps)
    adam = transforms.proximal_adam(falling, penalties.l1(config.anchor), anchored=True)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def make_settings(config) -> ppo.PPOConfig:
    """Rewards of single tokens without a critic; the KL, exact, in the loss, its weight led to a target."""
    own = {"num_epochs": EPOCHS, "num_minibatches": MINIBATCHES, "discount": GAE_LAMBDA}
    exact = {"placement": "loss", "estimator": "exact", "target": KL_TARGET, "horizon": KL_HORIZON}
    kl = KL(coef=config.kl_coef, **exact) if config.kl_coef else None
    return recipes.make("reinforce++", kl=kl, **own)


def teach(run, reviews, rewarder, optimizer, settings: ppo.PPOConfig, config) -> dict[str, Any]:
    """Learns, seed after seed, and judges; returns the numbers of the report."""
    language = load(run, config, reviews, rewarder, optimizer, settings)
    prompts = openings(language, reviews.split.train[:PROMPTS], config.prompt)
    held_out = openings(language, reviews.split.held_out, config.prompt)[:JUDGED]
    policies, key = [language.trained], jax.random.key(config.seed + 1)
    for i, seed in enumerate(range(config.seed, config.seed + config.seeds)):
        own = (seed, language, prompts, config, optimizer, settings)
        policies.append(learn(run, f"ppo {seed}" if i else "ppo", *own))
    judged = functools.partial(respond, key, language=language, prompts=held_out, batch=config.batch)
    changed = save(run, config, language, policies[1])
    tokenizer = language.model.tokenizer
    return report.write(run, reviews, tokenizer, policies, judged, rewarder, config, changed)


def load(run, config, reviews, rewarder, optimizer, settings: ppo.PPOConfig) -> Language:
    """Reads the model and binds it to its reward; a smoke run takes one that knows nothing for SmolLM2."""
    smoke = run.options.smoke and config.model == pretrained.SMOLLM2
    name, length = pretrained.UNTRAINED if smoke else config.model, config.prompt + config.response
    texts = [review.text for review in reviews.split.train[:100]]
    model = pretrained.load(name, run.data, texts, max_length=length)
    trained, frozen = choice(config, model).split(jax.random.key(config.seed), model.params)
    sampling = lm.SamplingConfig(stop_token=model.stops)
    parts = learning.make_parts(model.config, sampling, config.response, optimizer, settings)
    positive = functools.partial(judge, reviews.tokenizer, *rewarder, length + config.response)
    return Language(model, trained, frozen, parts, positive)


def choice(config, model: lm.Pretrained) -> trained_part.Choice:
    """The last layers, at an ℓ1 penalty on their change."""
    return trained_part.Choice(last=min(LAST, model.config.num_layers), sparse=config.anchor)


def judge(tokenizer, rm_params, rm_model, length: int, texts: Sequence[str], ended: np.ndarray) -> np.ndarray:
    """P(positive) of texts, `[B]`, by a reward model that sees `length` tokens of each, its END included."""
    rows = tokenization.encode(tokenizer, texts)
    rows = [row if end else row[:-1] for row, end in zip(rows, ended, strict=True)]
    tokens, mask = np.zeros((2, len(rows), length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row[:length], 1
    pieces = {"tokens": tokens, "mask": mask.astype(bool), "label": ended}
    return np.asarray(jax.nn.sigmoid(reward_model.judge(rm_params, pieces, rm_model)))


def rewards(language: Language, samples: lm.Samples) -> tuple[np.ndarray, np.ndarray]:
    """Changes of P(positive) by each token, `[B, R]`, and P(positive) of the whole texts, `[B]`.

    The reward model knows the value of every prefix, so that it is the critic as well: rewards to go with a
    discount of λ are the advantages of GAE with its values.
    """
    host, texts, ended = jax.device_get(samples), [], []
    tokenizer: Any = language.model.tokenizer
    start = host.tokens.shape[1] - host.response_mask.shape[1]
    for row, mask, end in zip(host.tokens, host.mask, host.ended, strict=True):
        sizes = np.cumsum(mask)[start - 1 :]
        texts += tokenizer.decode_batch([row[mask][:size].tolist() for size in sizes])
        ended += (end & (sizes == sizes[-1])).tolist()
    positive = language.positive(texts, np.array(ended)).reshape(len(host.tokens), -1)
    return np.where(host.response_mask, np.diff(positive, axis=1), 0.0), positive[:, -1]


def openings(language: Language, reviews: Sequence[Any], length: int) -> np.ndarray:
    """The first `length` tokens of every review that has so many, `[N, length]`."""
    tokenizer: Any = language.model.tokenizer
    texts = [tokenization.tidy(review.text) for review in reviews]
    rows = [row.ids for row in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return np.array([row[:length] for row in rows if len(row) >= length], np.int32)


def learn(run, name: str, seed: int, language: Language, prompts: np.ndarray, config, optimizer, settings):
    """The iterations of one seed; returns what was trained."""
    parts, frozen = language.parts, language.frozen

    def iterate(state, key):
        key_rows, key_sample, key_learn = jax.random.split(key, 3)
        asked = jax.random.choice(key_rows, prompts, (config.batch,), replace=False)
        samples = parts.collect(frozen, state, key_sample, lm.Prompts(asked))
        gains, positive = rewards(language, samples)
        state, metrics = parts.learn(frozen, state, key_learn, samples, jnp.asarray(gains))
        changed = lm.delta.count(language.trained, state.params["policy"])
        return state, [metrics._asdict() | {"reward": positive.mean(), "changed": changed}]

    start = jax.jit(lambda params: ppo.init(params, optimizer, settings))({"policy": language.trained})
    options = {"key": jax.random.key(seed), "every": 20, "shown": ("reward", "kl", "kl_coef", "changed")}
    state = supervised.run_resumable(run, name, iterate, start, config.iterations, 1, **options)
    return state.params["policy"]


def respond(key: jax.Array, trained: Any, *, prompts: np.ndarray, language: Language, batch: int):
    """Continues every prompt, a batch at a time: samples, P(positive), log-probs of the untouched model."""
    found = []
    for start in range(0, len(prompts) // batch * batch, batch):
        asked = lm.Prompts(jnp.asarray(prompts[start : start + batch]))
        key_batch = jax.random.fold_in(key, start)
        samples = language.parts.sample(language.frozen, key_batch, {"policy": trained}, asked)
        reference = samples.log_probs
        if trained is not language.trained:
            params = lm.trainable.join(language.trained, language.frozen)
            reference = _log_probs(params, samples, language.model.config, language.model.stops)
        _, positive = rewards(language, samples)
        found.append(jax.device_get((samples, positive, reference)))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *found)


@functools.partial(jax.jit, static_argnames=("config", "stops"))
def _log_probs(params, samples, config, stops):
    start = samples.tokens.shape[1] - samples.response_mask.shape[1]
    own = {"mask": samples.mask, "start": start, "sampling": lm.SamplingConfig(stop_token=stops)}
    return lm.score(params, samples.tokens, config, **own).log_probs


def save(run, config, language: Language, trained: Any) -> dict[str, int]:
    """Writes the delta; how many weights it changes, of how many, and its bytes."""
    params = lm.trainable.merge(trained, language.frozen)
    part = choice(config, language.model)
    sizes = trained_part.save(run.path, config.model, language.model, params, part, whole=False)
    changed = int(lm.delta.count(language.trained, trained))
    return {"changed": changed, "of": lm.num_params(language.model.config), "bytes": sizes["delta"]}
