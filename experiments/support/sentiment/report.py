"""Stage (d) of `experiments.sentiment`: policies judged by models that were not their reward."""

import functools

import jax
import matplotlib.figure
import numpy as np

from experiments.support.data import text_metrics, tokenization
from experiments.support.models import reward_model
from experiments.support.run import plots, runs, tables
from proxlm import lm

SHOWN = 8  # samples in the printed report
JUDGED = 512  # held-out openings, at most

# At temperature 1, up to the end of a review: how PPO samples and how it is judged.
SAMPLING = lm.SamplingConfig(stop_token=tokenization.END)

# Stage, title of the panel, and name of each logged number with its label.
PANELS = (
    ("language model", "language model: nats per token", {"loss": "training", "held_out_loss": "held out"}),
    ("reward model", "reward model: loss", {"loss": "training"}),
    ("reward model", "reward model: accuracy, held-out openings", {"accuracy": "accuracy"}),
    ("ppo", "P(positive)", {"reward": "reward"}),
    ("ppo", "KL to the LM, nats per response", {"kl": "KL"}),
    ("ppo", "entropy, nats per token", {"entropy": "entropy"}),
    ("ppo", "share of ratios clipped", {"clip_fraction_low": "too low", "clip_fraction_high": "too high"}),
    ("ppo", "value loss", {"value_loss": "value loss"}),
    ("ppo", "variance of returns explained by the critic", {"explained_variance": "share"}),
)


def write(run, reviews, tokenizer, policies, respond, rewarder, config, changed=None):
    """Judges the first of the policies as before and the others as after; writes the report.

    Args:
      tokenizer: of the policies.
      respond: parameters of a policy ↦ its responses to held-out prompts, for `assess`.
      changed: the weights that a delta changes, of how many, and its bytes.
    """
    train = [review.text for review in reviews.split.train]
    naive = text_metrics.fit_naive_bayes(train, reviews.train_labels)
    results = [assess(respond(params), tokenizer, naive) for params in policies]
    (before, before_texts), (_, after_texts) = results[0], results[1]
    after = [numbers for numbers, _ in results[1:]]
    rm_params, rm_model = rewarder
    accuracy = compare(reviews, naive, rm_params, rm_model, config)
    numbers = {"before": before, "after": after, "reward_model": accuracy}
    length = config.prompt + config.response
    report = page(before, after, accuracy, before_texts, after_texts, length)
    if changed:
        numbers |= {"delta": changed}
        share = 100 * changed["changed"] / changed["of"]
        report.append(
            f"{changed['changed']:,} weights changed, {share:.3g} % of the model: "
            f"delta.safetensors, {changed['bytes']:,} bytes"
        )
    return run.write(numbers, report, {"curves": draw(run)})


@functools.partial(jax.jit, static_argnames=("model", "rm_model", "config"))
def respond(key, params, *, prompts, ref_params, model, rm_params, rm_model, config):
    """Continues every prompt; the samples, P(positive), and the log-probs of the untouched LM."""
    samples = lm.sample(key, params, prompts, model, config.response, sampling=SAMPLING)
    reference = lm.score(
        ref_params, samples.tokens, model, mask=samples.mask, start=prompts.shape[1], sampling=SAMPLING
    ).log_probs
    odds = reward_model.score(rm_params, samples.tokens, samples.mask, rm_model)
    return samples, jax.nn.sigmoid(odds), reference


def assess(responses, tokenizer, naive):
    """The numbers of a set of responses, and the texts, each with its prompt."""
    samples, positive, reference = jax.device_get(responses)
    mask = samples.response_mask
    start = samples.tokens.shape[1] - mask.shape[1]
    prompts = tokenization.decode(tokenizer, samples.tokens[:, :start], samples.mask[:, :start])
    answers = tokenization.decode(tokenizer, samples.tokens[:, start:], mask)
    whole = [f"{prompt} ▸{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    numbers = {
        "P(positive)": positive.mean(),
        "positive by naive Bayes": (text_metrics.log_odds(naive, answers) > 0).mean(),
        "VADER": text_metrics.vader(answers).mean(),
        "KL to the LM, nats": np.where(mask, samples.log_probs - reference, 0).sum(1).mean(),
        "distinct-2": text_metrics.distinct_n(answers, 2),
        "repetition": np.mean(text_metrics.repetition(answers)),
        "perplexity under the LM": np.exp(-np.where(mask, reference, 0).sum() / mask.sum()),
        "tokens": mask.sum(1).mean(),
        "share that ended": samples.ended.mean(),
    }
    return {name: float(value) for name, value in numbers.items()}, whole


def compare(reviews, naive, rm_params, rm_model, config):
    """Accuracy of the reward model and of naive Bayes on the same held-out texts."""
    length = config.prompt + config.response
    result = {}
    sets = {
        "openings": reward_model.openings(reviews.held_out, reviews.held_out_labels, length),
        "pieces": reward_model.snippets(
            config.seed + 2, reviews.held_out, reviews.held_out_labels, length, 4096
        ),
    }
    for name, texts in sets.items():
        odds = reward_model.judge(rm_params, texts, rm_model)
        words = tokenization.decode(reviews.tokenizer, texts["tokens"], texts["mask"])
        result[name] = {
            "reward model": text_metrics.accuracy(odds, texts["label"]),
            "naive Bayes": text_metrics.accuracy(text_metrics.log_odds(naive, words), texts["label"]),
            "n": len(odds),
        }
    return result


def draw(run) -> matplotlib.figure.Figure:
    """The curves that the three stages logged."""
    panels, steps = {}, {}
    for stage, title, names in PANELS:
        if rows := runs.read_log(run, stage):
            panels[title] = {label: plots.logged(rows, name) for name, label in names.items()}
            steps[title] = "iteration of PPO" if stage == "ppo" else "step"
    return plots.curves(panels, steps)


def page(before, after, accuracy, before_texts, after_texts, length):
    """The paragraphs of the report; the reviews that were judged had `length` tokens."""
    digits = {"KL to the LM, nats": 1, "perplexity under the LM": 1, "tokens": 1}
    rows = [
        [
            name,
            f"{value:.{digits.get(name, 2)}f}",
            tables.mean_spread([seed[name] for seed in after], digits.get(name, 2)),
        ]
        for name, value in before.items()
    ]
    percent = lambda share: f"{100 * share:.1f} %"
    judged = [
        [name, percent(row["reward model"]), percent(row["naive Bayes"]), row["n"]]
        for name, row in accuracy.items()
    ]
    return [
        "Held-out openings, continued before and after PPO:",
        tables.table(rows, ["", "before", "after"]),
        f"Accuracy on held-out reviews, of {length}-token texts:",
        tables.table(judged, ["", "reward model", "naive Bayes", "n"]),
        "The text before ▸ is the prompt:",
        tables.side_by_side(before_texts[:SHOWN], after_texts[:SHOWN]),
    ]
