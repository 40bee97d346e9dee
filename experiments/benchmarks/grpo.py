"""An iteration of GRPO, beside TRL's trainer where it is installed (`pip install trl accelerate datasets`).

Both sample 8 answers of 48 tokens to each of 8 prompts of 16, from Llama's shape of 4 layers, width 128 and
256 tokens, and take 16 Adam steps on a quarter of them each, with the k3 estimate of the KL to a reference in
the loss. TRL scores and samples by transformers, from random weights of its own; it does not shuffle between
epochs. Its trainer runs in a thread and halts after each iteration, so that both take turns; what it logs and
saves is turned off. CPU s an iteration, one core of an Intel Xeon (AVX-512) under other work, best (median):

    proxlm 1.57 (1.72), TRL 1.16 4.13 (4.45)    load 11, n=4; the first call 22 and 5.9
    proxlm 2.12 (2.16), TRL 1.16 4.71 (5.19)    load 6, n=3; the first call 25.8 and 5.4
    tunix 0.1.7 3.94 (3.96)                     just before that, in a process of its own, n=2

tunix asks for safetensors below 0.8 and for tensorflow_datasets, which cannot stand beside what
`proxlm[models]` and this folder use, so it ran in an environment of its own, by its GRPOLearner with its own
sampler and Qwen3 of these sizes, 16 Adam steps an iteration: sampling 0.70, update 3.14. `make bench` does
not run it.
"""

import dataclasses
import importlib.util
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import clock, ppo
from experiments.support.run import tables
from proxlm import lm
from proxlm.policy import recipes
from proxlm.policy.ppo import PPOConfig, init


@dataclasses.dataclass(frozen=True)
class Job(ppo.Job):
    """A policy, prompts with a group of answers each, and updates."""

    batch: int = 8  # prompts
    kl_coef: float = 0.04
    group: int = 8

    @property
    def settings(self) -> PPOConfig:
        counts = {"num_epochs": self.epochs, "num_minibatches": self.minibatches, "group_size": self.group}
        return recipes.make("grpo", kl_coef=self.kl_coef, **counts)


JOBS = {"base": Job(4, 128, 4, 256, prompt=16, response=48)}


def ours(job: Job):
    """A function of no arguments that does an iteration and returns its mean reward."""
    optimizer = optax.adam(job.learning_rate, eps=ppo.ADAM_EPSILON)
    actor = lm.make_actor(job.policy, job.response, critic=False)
    step = ppo.make_step(job, optimizer, job.settings, actor)
    return ppo.iterating(step, init(actor.init(jax.random.key(0)), optimizer, job.settings))


def by_trl(job: Job):
    """The same by TRL's GRPOTrainer."""
    import datasets
    import transformers
    import trl

    from experiments.benchmarks import torch_peer

    torch_peer.prepare()
    end = job.vocab_size  # a token that the model does not have: every answer is of full length
    folder = tempfile.mkdtemp()  # from which TRL reads the reference
    torch_peer.llama(job.policy).save_pretrained(folder)
    rows = np.random.default_rng(0).integers(0, end, (1024, job.prompt))
    texts = datasets.table.InMemoryTable.from_pydict({"prompt": [" ".join(map(str, row)) for row in rows]})
    trainer = trl.GRPOTrainer(
        transformers.LlamaForCausalLM.from_pretrained(folder),
        lambda completion_ids, **_: [float(np.mean(np.array(ids) < end // 2)) for ids in completion_ids],
        args=trl.GRPOConfig(**_settings(job)),
        train_dataset=datasets.Dataset(texts, fingerprint="prompts"),
        processing_class=_tokenizer(end),
    )
    return _halting(trainer, transformers.TrainerCallback, job.epochs * job.minibatches)


def _tokenizer(end):
    """Numbers below `end` and itself as words."""
    import tokenizers
    import transformers

    words = tokenizers.models.WordLevel({str(i): i for i in range(end + 1)}, str(end))
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=str(end), pad_token=str(end), padding_side="left"
    )


def _settings(job):
    """The fields of TRL's GRPOConfig."""
    return dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job.batch * job.group // job.minibatches,
        steps_per_generation=job.minibatches,
        num_iterations=job.epochs,
        num_generations=job.group,
        max_completion_length=job.response,
        max_steps=10_000 * job.epochs * job.minibatches,
        beta=job.kl_coef,
        loss_type="grpo",
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        adam_epsilon=ppo.ADAM_EPSILON,
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=jax.default_backend() == "cpu",
    )


def _halting(trainer, base, steps):
    """A function that lets the trainer run for so many steps."""
    go, done, errors = threading.Semaphore(0), threading.Semaphore(0), []

    class Halt(base):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % steps == 0:
                done.release()
                go.acquire()

    def run():
        go.acquire()
        try:
            trainer.train()
        except BaseException as error:
            errors.append(error)
            done.release()

    def call():
        go.release()
        done.acquire()
        if errors:
            raise errors[0]

    trainer.add_callback(Halt())
    threading.Thread(target=run, daemon=True).start()
    return call


def compare(jobs: dict[str, Job], settings: clock.Settings) -> str:
    """A table of all the jobs."""
    rows = []
    for name, job in jobs.items():
        calls: dict[str, Callable[[], Any]] = {"proxlm": ours(job)}
        if clock.torch_fits() and all(map(importlib.util.find_spec, ("trl", "accelerate", "datasets"))):
            calls["TRL's GRPOTrainer"] = by_trl(job)
        timings = clock.measure(calls, settings)
        seconds = clock.seconds_of(timings)
        ratios = clock.ratios(seconds, "proxlm")
        rows += [[name, by, *pair, *ratios[by], timings[by].first] for by, pair in seconds.items()]
    headers = ["GRPO", "by", "s/iteration", "(best)", "time / proxlm's", "(best)", "first call, s"]
    return f"{tables.table(rows, headers)}\n{clock.caption(timings)}"
