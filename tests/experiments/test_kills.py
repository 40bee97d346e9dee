"""Runs that are killed again and again, every other time while they save, lose nothing and change no bit."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from tests.experiments import killing
from tests.experiments.test_resume import log_of, without_clocks

KILLS = int(os.environ.get("PROXLM_KILLS", "20"))  # of each experiment
SMALL = {"num_layers": 1, "width": 32}
RUNS = {
    "train_lm": SMALL
    | {"num_heads": 2, "context": 8, "batch": 2, "steps": 800, "samples": 1, "sample_length": 8},
    "sentiment": SMALL
    | {"vocab_size": 300, "rm_layers": 1, "window": 8, "lm_steps": 80, "rm_steps": 80, "iterations": 8}
    | {"batch": 8, "prompt": 3, "response": 4, "documents": 100},
    "verifiable": {
        "num_layers": 1,
        "width": 16,
        "sft_steps": 200,
        "sft_batch": 8,
        "iterations": 2,
        "batch": 32,
    }
    | {"length_steps": 20, "recipes": ("remax",), "variants": ("grpo",), "seeds": 2},
}


def saved(root):
    """The newest complete step in every folder of checkpoints, and the checksums of its arrays."""
    steps = [path for path in root.rglob("[0-9]*") if path.name.isdigit() and (path / "about").is_dir()]
    newest = {
        path.parent: max(int(x.name) for x in path.parent.glob("[0-9]*") if x.name.isdigit())
        for path in steps
    }
    about = lambda folder, step: json.loads((folder / str(step) / "about" / "metadata").read_text())
    return {folder: (step, about(folder, step)["checksums"]) for folder, step in newest.items()}


def end_of(root):
    """Numbers, log and bits that a finished run leaves."""
    (numbers,) = root.glob("*/[0-9]*/numbers.json")
    bits = [(folder.name, step, checksums) for folder, (step, checksums) in saved(root).items()]
    return without_clocks(json.loads(numbers.read_text())), log_of(root), sorted(bits, key=json.dumps)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_kills_lose_nothing_and_change_no_bit(name, tmp_path, wheels):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.experiments.killing", *(f"experiments.{x}" for x in RUNS)])
    rng, kills, chains, half_written = np.random.default_rng(0), 0, 0, 0

    def start(root, moment):
        process = context.Process(target=killing.run, args=(name, RUNS[name], str(root), str(wheels), moment))
        process.start()
        process.join(1200)
        return process.exitcode

    assert start(tmp_path / "whole", None) == 0
    while kills < KILLS:
        root = tmp_path / f"killed {chains}"
        code = -signal.SIGKILL
        while code != 0:
            kind = ("log", "save")[kills % 2]
            moment = (kind, int(rng.integers(1, 4)), float(rng.uniform(0.0, 0.1)))
            before = saved(root)
            code = start(root, moment if kills < KILLS else None)
            assert code in (0, -signal.SIGKILL)
            after = saved(root)
            assert all(after[folder][0] >= step for folder, (step, _) in before.items())
            kills += code != 0
            half_written += any(".orbax-checkpoint-tmp" in path.name for path in root.rglob("*"))
        assert end_of(root) == end_of(tmp_path / "whole")
        chains += 1
    print(f"{name}: {kills} kills in {chains} chains, {half_written} with a half-written step on the disk")
