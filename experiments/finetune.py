"""Fine-tuning of a pretrained model on a file of yours, all of it or little.

    python -m experiments.finetune --model DIR --data data.jsonl           # prompts with answers, or chats
    python -m experiments.finetune --model DIR --data pairs.jsonl --dpo    # prompts with two answers
    python -m experiments.finetune --train lora:8                          # SmolLM2, dates to be written out

What is trained: `all`; `lora:RANK`, low-rank factors; `last:LAYERS`; or `sparse:STRENGTH`, with an ℓ1
penalty on the distance to the pretrained weights, which leaves most of them as they were; `sparse:0.1%`
makes it so strong that the first gradients move this share. The loss is of the answers alone. Lines of the
data are described in experiments/support/finetune/examples.py.

2 CPU cores (Intel Xeon), 128 s of CPU time; SmolLM2-135M, one seed, 2.4 of its 135 million weights trained by
--train lora:8 --no-chat --steps 40 --batch 4 --held-out 0.05 --samples 24 --sample-length 12:
22 of 24 held-out dates are written as they should be, none before; held-out loss 3.08 -> 0.064 nats a
token (0.024 after 10 steps). The adapter has 9.8 MB. Other kinds were not measured.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from experiments.support import Refusal
from experiments.support.data import tokenization
from experiments.support.finetune import examples, objectives
from experiments.support.models import language_model, pretrained, trained_part
from experiments.support.run import cli, configs, files, plots, runs, supervised, tables
from proxlm import _validation, lm
from proxlm.lm import delta, trainable


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    """The defaults suit a model of a hundred million weights on a CPU."""

    model: str = configs.field(
        pretrained.SMOLLM2, smoke=pretrained.UNTRAINED
    )  # or a folder, GGUF file or hf: name
    data: str = ""  # a file with a JSON object a line; empty: dates to be written out
    train: str = "lora:8"  # all, lora:RANK, last:LAYERS, norms, sparse:STRENGTH or sparse:SHARE%
    dpo: bool = False  # learn from pairs of a chosen and a rejected answer
    beta: float = 0.1  # of DPO
    steps: int = configs.field(100, smoke=4)  # of the optimizer
    batch: int = configs.field(8, smoke=4)  # examples of a step, or rows where they are packed
    pack: bool = False  # rows of max_tokens that hold several examples, none of which sees another
    learning_rate: float = 0.0  # 0: 1e-3 for LoRA, 2e-5 for the rest
    max_tokens: int = 256  # of a conversation; longer ones are left out
    held_out: float = 0.1  # share of the examples
    chat: bool = True  # prompts and responses in the model's chat template, where it has one
    samples: int = configs.field(32, smoke=4)  # held-out prompts that are answered before and after
    sample_length: int = configs.field(32, smoke=4)  # tokens of each
    merged: bool = False  # also write the whole model of lora and sparse
    seed: int = 0  # of the adapters and the order of the examples

    def validate(self) -> None:
        configs.check_shares(self, "held_out")
        configs.check_positive(self, "beta")
        trained_part.parse(self.train, shares=True)
        if self.pack and self.dpo:
            raise _validation.invalid("pack", True, "False with dpo", "Pairs are not packed.")
        if self.steps > 10 and self.steps % 10:
            raise _validation.invalid("steps", self.steps, "1 to 10, or a multiple of 10")


def make_optimizer(config: Config, choice: trained_part.Choice) -> optax.GradientTransformation:
    """Adam at a rate that falls, in sparse training with a proximal step to the pretrained weights."""
    rate = config.learning_rate or (2e-5 if choice.lora is None else 1e-3)
    return optax.chain(optax.clip_by_global_norm(1.0), choice.adam(language_model.ramp(rate, config.steps)))


def encode_all(rows, model: lm.Pretrained, config: Config) -> tuple[list, list]:
    """Examples to learn, and held-out ones, in an order of chance; those that are too long are left out."""
    longest = min(config.max_tokens, model.config.max_length)
    encoded = [examples.encode(row, model, pairs=config.dpo, chat=config.chat) for row in rows]
    fits = [one for one in encoded if max(len(tokens) for tokens, _ in one.answers) <= longest]
    if len(fits) < len(encoded):
        print(
            f"{len(encoded) - len(fits)} of {len(encoded)} examples are left out: more than {longest} tokens"
        )
    border = max(1, round(config.held_out * len(fits)))
    if len(fits) - border < config.batch:
        raise Refusal(
            f"data has {len(fits)} examples that fit, {border} of them held out: expected at least "
            f"batch={config.batch} beside these; give more data, or a smaller batch"
        )
    order = np.random.default_rng(config.seed).permutation(len(fits))
    return [fits[i] for i in order[border:]], [fits[i] for i in order[:border]]


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Fine-tunes, answers held-out prompts before and after, and writes the result; returns the numbers."""
    rows = examples.read(config.data, run)
    model = pretrained.load(config.model, run.data, [str(row) for row in rows], config.max_tokens)
    learnt, held_out = encode_all(rows, model, config)
    choice = trained_part.parse(config.train, shares=True)
    trained, frozen = choice.split(jax.random.key(config.seed), model.params)
    longest = max(len(tokens) for one in learnt + held_out for tokens, _ in one.answers)
    data, judged = (examples.rows_of(part, longest) for part in (learnt, held_out))
    if config.pack:
        data = examples.packed(learnt, min(config.max_tokens, model.config.max_length))
        if len(data["tokens"]) < config.batch:
            raise Refusal(f"data fills {len(data['tokens'])} rows: expected batch={config.batch} or more")
    loss = functools.partial(objectives.supervised, config=model.config)
    if config.dpo:
        loss = functools.partial(objectives.preference, config=model.config, beta=config.beta)
        reference = functools.partial(
            objectives.with_reference, trained=trained, frozen=frozen, config=model.config, batch=config.batch
        )
        data, judged = reference(data), reference(judged)
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    sizes = f"{len(learnt)} examples, {len(held_out)} held out, of up to {longest} tokens"
    print(f"{sizes}; {count:,} weights trained", flush=True)
    evaluate = objectives.make_evaluate(loss, judged, frozen, config.batch)
    asked = held_out[: config.samples]
    prompts = tokenization.left_padded([one.prompt for one in asked])
    answer = objectives.make_answer(model, frozen, prompts, config.sample_length)
    before, first = answer(trained), evaluate(trained)["held_out_loss"]
    if choice.share is not None:
        choice = choice.at(first_gradient(loss, trained, frozen, data, config))
        print(f"strength of the penalty: {choice.sparse:.3g}", flush=True)
    tuned = fit(run, loss, trained, frozen, data, evaluate, config, choice)
    after, last = answer(tuned), evaluate(tuned)["held_out_loss"]
    params = trainable.merge(tuned, frozen)
    changed = delta.count(trained, tuned)
    numbers = {
        "held_out_loss": {"before": first, "after": last},
        "exact_answers": {
            name: exact(texts, asked) for name, texts in {"before": before, "after": after}.items()
        },
        "trained_weights": count,
        "changed_weights": changed,
        "bytes": trained_part.save(run.path, config.model, model, params, choice, config.merged),
    }
    return report(run, numbers, asked, before, after)


def first_gradient(loss, trained, frozen, data, config: Config) -> Any:
    """The mean over up to 8 batches, clipped as the optimizer sees it."""
    gradient = jax.jit(jax.grad(lambda trained, rows: loss(trained, rows, frozen)))
    starts = range(0, len(data["tokens"]) - config.batch + 1, config.batch)[:8]
    cut = lambda i: {name: rows[i : i + config.batch] for name, rows in data.items()}
    gradients = [gradient(trained, cut(i)) for i in starts]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *gradients)
    return optax.clip_by_global_norm(1.0).update(mean, optax.EmptyState())[0]


def fit(run: runs.Run, loss, trained, frozen, data, evaluate, config: Config, choice) -> Any:
    """Minimises the loss over the epochs that the steps make; the parameters."""
    chunk = min(10, config.steps)
    state = supervised.fit(
        run,
        "fine-tuning",
        loss,
        make_optimizer(config, choice),
        trained,
        data,
        supervised.epochs(config.seed, len(data["tokens"]), config.batch, config.steps),
        chunk=chunk,
        evaluate_every=max(1, config.steps // chunk // 5),
        evaluate=evaluate,
        fixed={"frozen": frozen},
    )
    return state.params


def exact(texts, asked) -> float:
    """The share of answers that are the held-out ones, but for white space."""
    return float(
        np.mean([text.split() == one.response.split() for text, one in zip(texts, asked, strict=True)])
    )


def report(run: runs.Run, numbers, asked, before, after) -> dict[str, Any]:
    """Writes numbers, samples and the curve of the loss."""
    texts = [
        f"expected: {one.response}\nbefore:   {old}\nafter:    {new}"
        for one, old, new in zip(asked, before, after, strict=True)
    ]
    files.write_text(run.path / "samples.txt", "\n\n".join(texts) + "\n")
    pairs = {"held-out loss, nats": "held_out_loss", f"exact answers (n={len(asked)})": "exact_answers"}
    rows = [(words, *map(float, numbers[name].values())) for words, name in pairs.items()]
    size = ", ".join(f"{name} {size:,} bytes" for name, size in numbers["bytes"].items())
    changed, count = int(numbers["changed_weights"]), numbers["trained_weights"]
    share = f"{changed:,} of {count:,} trained weights changed; {size}"
    logged = runs.read_log(run, "fine-tuning")
    losses = {"training": plots.logged(logged, "loss"), "held out": plots.logged(logged, "held_out_loss")}
    table = tables.table(rows, ["", "before", "after"])
    return run.write(numbers, [table, share, texts[0]], {"curves": plots.curves({"loss": losses})})


if __name__ == "__main__":
    cli.run(main)
