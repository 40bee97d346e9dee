"""Report of `experiments.verifiable`: recipes side by side, and task by task."""

import matplotlib.figure
import numpy as np

from experiments.support.run import plots, tables
from experiments.support.verifiable import tasks

GOAL = 0.95
FAMILIES = {
    "a critic": ("ppo", "ppo_kl", "mdpo", "vapo"),
    "one answer a prompt, no critic": ("reinforce", "remax", "reinforce++"),
    "groups, one step a batch": ("rloo", "opo"),
    "groups, clipped by token": tuple(
        "reinforce++_baseline grpo dr_grpo dapo clip_cov tis pass_at_k".split()
    ),
    "groups, by sequence": ("gspo", "luspo", "gmpo", "vespo", "topr"),
    "groups, other bounds": ("cispo", "sapo", "kl_cov", "dppo"),
}


def write(run, config, start, results, lengths) -> dict:
    """Writes the report; returns its numbers."""
    names = config.recipes
    exact = results["right"].mean(axis=2)  # [recipes, seeds]
    order = np.argsort(-exact.mean(axis=1), kind="stable")
    reached = int(np.sum(exact.mean(axis=1) >= GOAL))
    report = [
        f"Exact match of sampled answers, %, after imitation: {percent(start['right'].mean())} "
        f"({by_task(start['right'])}); greedy {percent(start['greedy'].mean())}.",
        "After every recipe; KL in nats per answer to the imitation, of which a policy that is "
        f"always right needs {start['least_kl']:.2f}:",
        table(names, exact, results, order),
        f"{reached} of {len(names)} recipes reach {percent(GOAL)} %.",
        "Tokens of answers whose length earns nothing, at first and over the last tenth:",
        length_table(config.variants, lengths),
    ]
    numbers = {"start": start} | {
        name: {
            "exact": exact[i],
            "kl": results["kl"][i],
            "by_task": results["right"][i].mean(axis=0),
            "milliseconds": float(results["milliseconds"][i]),
        }
        for i, name in enumerate(names)
    }
    numbers["lengths"] = {
        name: {kind: lengths[kind][i, :, -1] for kind in lengths} for i, name in enumerate(config.variants)
    }
    figures = {
        "recipes": draw_recipes(names, exact, results, order),
        "curves": draw_curves(names, results),
        "lengths": draw_lengths(config.variants, lengths),
    }
    return run.write(numbers, report, figures)


def table(names, exact, results, order) -> str:
    """A row a recipe, the best first."""
    rows = [
        [
            names[i],
            tables.mean_spread(100 * exact[i], 1),
            *(percent(x) for x in results["right"][i].mean(axis=0)),
            percent(results["greedy"][i].mean()),
            tables.mean_spread(results["kl"][i], 2),
            f"{results['milliseconds'][i]:.0f}",
        ]
        for i in order
    ]
    return tables.table(rows, ["recipe", "exact match, %", *tasks.TASKS, "greedy", "KL", "CPU ms"])


def draw_recipes(names, exact, results, order) -> matplotlib.figure.Figure:
    """All recipes side by side."""
    rows = {
        names[i]: {
            "wrong answers, %": 100 - 100 * exact[i].mean(),
            "KL to the imitation, nats": results["kl"][i].mean(),
            "CPU ms an iteration": results["milliseconds"][i],
        }
        for i in order
    }
    return plots.bars(rows, list(next(iter(rows.values()))))


def draw_curves(names, results) -> matplotlib.figure.Figure:
    """The curves of the recipes by family."""
    curves = {name: plots.band(rows) for name, rows in zip(names, results["curve"], strict=True)}
    known = {name for members in FAMILIES.values() for name in members}
    families = FAMILIES | {"others": tuple(name for name in names if name not in known)}
    series = {
        title: {name: curves[name] for name in members if name in curves}
        for title, members in families.items()
    }
    note = "share of right answers among those sampled"
    return plots.curves({title: own for title, own in series.items() if own}, "iteration", note=note)


def length_table(names, lengths) -> str:
    """A row a variant: tokens at the first iteration and over the last tenth."""
    tail = -max(1, lengths["right"].shape[2] // 10)
    last = {kind: rows[:, :, tail:].mean(axis=2) for kind, rows in lengths.items()}
    rows = []
    for i, name in enumerate(names):
        first = [f"{lengths[kind][i, :, 0].mean():.1f}" for kind in ("right", "wrong")]
        right, wrong = last["right"][i], last["wrong"][i]
        means = [f"{kind.mean():.1f}" for kind in (right, wrong)]
        gap, ended = tables.mean_spread(wrong - right, 1), f"{100 * last['ended'][i].mean():.0f}"
        rows.append([name, first[0], means[0], first[1], means[1], gap, ended])
    return tables.table(
        rows, ["recipe", "right: first", "last", "wrong: first", "last", "wrong - right", "ended, %"]
    )


def draw_lengths(names, lengths) -> matplotlib.figure.Figure:
    """Lengths of right and wrong answers, a panel a variant."""
    series = {
        name: {kind: plots.band(lengths[kind][i]) for kind in ("right", "wrong")}
        for i, name in enumerate(names)
    }
    note = "tokens of right and wrong answers; length earns nothing"
    return plots.curves(series, "iteration", note=note)


def by_task(shares) -> str:
    pairs = zip(tasks.TASKS, shares, strict=True)
    return ", ".join(f"{task} {percent(share)}" for task, share in pairs)


def percent(share) -> str:
    return f"{100 * float(share):.0f}"
