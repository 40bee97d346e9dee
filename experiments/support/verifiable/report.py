"""Report of `experiments.verifiable`: recipes side by side, and task by task."""

import numpy as np

from experiments.support.run import plots, runs, tables
from experiments.support.verifiable import tasks

GOAL = 0.95
FAMILIES = {
    "a critic": ("ppo", "ppo_kl", "mdpo", "vapo"),
    "one answer a prompt, no critic": ("reinforce", "remax", "reinforce++"),
    "groups, one step a batch": ("rloo", "opo"),
    "groups, clipped by token": (
        "reinforce++_baseline",
        "grpo",
        "dr_grpo",
        "dapo",
        "clip_cov",
        "tis",
        "pass_at_k",
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
    numbers = {"start": {name: np.asarray(x).tolist() for name, x in start.items()}}
    runs.truncate_log(run, "result")
    for i, name in enumerate(names):
        numbers[name] = {
            "exact": exact[i].tolist(),
            "kl": results["kl"][i].tolist(),
            "by_task": results["right"][i].mean(axis=0).tolist(),
            "milliseconds": float(results["milliseconds"][i]),
        }
        runs.log(run, "result", recipe=name, **numbers[name])
    numbers["lengths"] = {
        name: {kind: lengths[kind][i, :, -1].tolist() for kind in lengths}
        for i, name in enumerate(config.variants)
    }
    figures = {
        "recipes.png": lambda path: plot_recipes(path, names, exact, results, order),
        "curves.png": lambda path: plot_curves(path, names, results),
        "lengths.png": lambda path: plot_lengths(path, config.variants, lengths),
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


def plot_recipes(path, names, exact, results, order) -> None:
    """Draws all recipes side by side."""
    rows = {
        names[i]: {
            "wrong answers, %": 100 - 100 * exact[i].mean(),
            "KL to the imitation, nats": results["kl"][i].mean(),
            "CPU ms an iteration": results["milliseconds"][i],
        }
        for i in order
    }
    plots.bars(path, rows, list(next(iter(rows.values()))))


def plot_curves(path, names, results) -> None:
    """Draws the curves of the recipes by family."""
    curves = {name: curve_of(rows) for name, rows in zip(names, results["curve"], strict=True)}
    known = {name for members in FAMILIES.values() for name in members}
    families = FAMILIES | {"others": tuple(name for name in names if name not in known)}
    panels = {
        title: {name: curves[name] for name in members if name in curves}
        for title, members in families.items()
    }
    plots.curves(
        path,
        {title: series for title, series in panels.items() if series},
        xlabel="iteration",
        note="share of right answers among those sampled; bands: ± a deviation",
    )


def curve_of(rows):
    """The curve of a mean over seeds `[seeds, iterations]`."""
    return plots.band(np.arange(1, rows.shape[1] + 1), rows)


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


def plot_lengths(path, names, lengths) -> None:
    """Lengths of right and wrong answers, a panel a variant."""
    panels = {
        name: {kind: curve_of(lengths[kind][i]) for kind in ("right", "wrong")}
        for i, name in enumerate(names)
    }
    plots.curves(
        path,
        panels,
        xlabel="iteration",
        note="tokens of right and wrong answers; length earns nothing; bands: ± a deviation",
    )


def by_task(shares) -> str:
    pairs = zip(tasks.TASKS, shares, strict=True)
    return ", ".join(f"{task} {percent(share)}" for task, share in pairs)


def percent(share) -> str:
    return f"{100 * float(share):.0f}"
