"""The tables and the figures of sparse_rl."""

import itertools
from typing import Any

import jax
import matplotlib.figure
import numpy as np

from experiments.support.run import plot_panels, plots, tables
from proxlm import lm

KILO = 1024
KINDS = {"adam": "Adam", "cut": "Adam's largest changes", "l1": "ℓ1 anchor", "norms": "norm scales alone"}
KINDS |= {
    "l1_norms": "ℓ1 anchor on norm scales",
    "lora": "LoRA",
    "sft": "SFT on answers",
    "rows": "ℓ1 of rows",
    "dual": "dual averaging",
    "l0": "ℓ0",
}
SPREAD = "right: the probability that an answer sampled at temperature 1 is right, exactly computed"
LEGIBLE = 12  # columns of a heatmap with words in their cells
COUNTS = ("moved", "moved_since_start", "bfloat16_moved", "bfloat16_moved_since_start")


def rows_of(found: dict, held_out: dict[str, int]) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, lane or cut) ↦ its numbers `[seeds]`, those of Adam's largest changes beside the lanes."""
    rows = {}
    for (task, lane), results in found.items():
        size = held_out[task]
        rows[task, "start"] = _numbers([{"end": results[0]["start"], "changed": 0, "bytes": 0}], size)
        rows[task, f"{lane.name} @ {lane.rate:g}"] = _numbers(results, size)
        for name in (name for name in results[0] if name.startswith("cut ")):
            count = int(name.removeprefix("cut "))
            label = f"{lane.name} @ {lane.rate:g}, its {count:,} largest changes"
            rows[task, label] = _numbers([result[name] for result in results], size)
    return rows


def _numbers(results, held_out):
    mean = lambda name, part: np.array([100 * np.mean(r["end"][name][part]) for r in results])
    parts = {"held_out": slice(held_out), "validation": slice(held_out, None)}
    numbers = {name: mean("right", part) for name, part in parts.items()}
    kl = np.array([np.mean(r["end"]["kl"][:held_out]) for r in results])
    problems = np.mean([r["end"]["right"][:held_out] for r in results], axis=0)
    sizes = {name: np.array([int(r[name]) for r in results]) for name in ("changed", "bytes")}
    return (
        numbers
        | sizes
        | {
            "greedy": mean("greedy", parts["held_out"]),
            "kl": kl,
            "error_of_problems": 100 * np.std(problems, ddof=1) / np.sqrt(len(problems)),
            "minutes": np.array([float(r.get("seconds", 0)) / 60 for r in results]),
        }
    )


def table(rows: dict, size: int) -> str:
    """A line a lane: what it changes, and what it is good for."""
    headers = ["task", "lane", "n", "weights changed", "% of the model", "bytes of the patch"]
    headers += ["validation", "held out, right, %", "greedy, %", "KL, nats", "CPU minutes"]
    lines = []
    for (task, name), row in rows.items():
        changed = np.mean(row["changed"])
        spread = lambda values: tables.mean_spread(values, 1, count=False)
        line = [task, name, len(row["changed"]), f"{changed:,.0f}", f"{100 * changed / size:.3g}"]
        line += [f"{np.mean(row['bytes']):,.0f}", spread(row["validation"]), spread(row["held_out"])]
        line += [spread(row["greedy"]), f"{np.mean(row['kl']):.2f}", f"{np.mean(row['minutes']):.1f}"]
        lines.append(line)
    return tables.table(lines, headers)


def shipped(found: dict) -> str:
    """Weights that differ after an iteration, on average, and after all, as they are and in bfloat16."""
    lines = []
    for (task, lane), results in found.items():
        if "moved" in results[0]["log"]:
            log = {name: np.mean([r["log"][name] for r in results], axis=0) for name in COUNTS}
            ends = [log[name][-1 if "start" in name else slice(None)].mean() for name in COUNTS]
            lines.append([task, lane.name, *(f"{x:,.0f}" for x in ends)])
    headers = ["task", "lane", "an iteration", "since the start", "bfloat16, an iteration", "since the start"]
    return tables.table(lines, headers)


def overlap(results: list, start: Any) -> float:
    """Of the weights that two seeds change together, the share that both change; mean of all pairs."""
    changed = []
    for result in results:
        after = lm.delta.apply(start, result["path"] / "delta.safetensors")
        pairs = zip(*map(jax.tree.leaves, (start, after)), strict=True)
        changed.append(np.concatenate([np.ravel(np.asarray(x) != np.asarray(y)) for x, y in pairs]))
    pairs = list(itertools.combinations(changed, 2))
    return float(np.mean([np.sum(a & b) / max(np.sum(a | b), 1) for a, b in pairs])) if pairs else np.nan


def against_bytes(rows: dict) -> matplotlib.figure.Figure:
    """Held-out success, and below it KL, against the size of the patch; a column a task."""
    shown = {"held_out": "right, held out, %", "kl": "KL to the start along right answers, nats"}
    tasks = list(dict.fromkeys(task for task, _ in rows))
    drawings = {}
    for number, words in shown.items():
        for task in tasks:
            own = {name: row for (its_task, name), row in rows.items() if its_task == task}
            drawings[f"{task}: {words}"] = _against_bytes(own, number)
    most = max(len(row["kl"]) for row in rows.values())
    note = f"bars: ± a standard deviation over n={most} seeds; without one: n=1" if most > 1 else ""
    figure = plots.panels(drawings, max(len(tasks), 2), (4.6, 3.0))
    named = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    look: dict = {"loc": "outside lower center", "ncols": 4, "edgecolor": "none", "fontsize": 8}
    figure.legend(named.values(), named, title=note, title_fontsize=9, **look)
    return figure


def _against_bytes(rows, number):
    """A panel of one task and one number: a curve a kind of lane, in the same colour everywhere."""
    curves: dict[str, list] = {}
    for name, row in sorted(rows.items(), key=lambda item: np.mean(item[1]["bytes"])):
        if name != "start":
            curves.setdefault(_kind(name), []).append(row)

    def draw(axis):
        for kind, colour in zip(KINDS, plot_panels.COLOURS, strict=False):
            if own := curves.get(kind):
                means = [[np.mean(row["bytes"]) / KILO, np.mean(row[number])] for row in own]
                spread = [np.std(row[number], ddof=1) if len(row[number]) > 1 else 0 for row in own]
                look = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.4, "capsize": 2}
                axis.errorbar(*np.transpose(means), spread, label=KINDS[kind], **look)
        start = float(np.mean(rows["start"][number]))
        axis.axhline(start, color="#5b5b5b", linestyle="--", linewidth=1.0, label="start")
        plot_panels.scale(axis, "x", (), log=True)
        axis.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel("KiB of the patch", fontsize=9)

    return draw


def _kind(name):
    """The curve that a row is a point of."""
    return "cut" if "largest changes" in name else name.partition(" @")[0].partition(":")[0]


def where(found: dict) -> matplotlib.figure.Figure | None:
    """The share of the weights of each matrix that the first ℓ1 lane changes, layer by layer."""
    lanes = [(key, results) for key, results in found.items() if key[1].kind == "l1"]
    if not lanes:
        return None
    (task, lane), results = lanes[0]
    shares = {path: np.mean([r["where"][path] for r in results], axis=0) for path in results[0]["where"]}
    shares = {path.removeprefix("blocks."): 100 * share for path, share in shares.items()}
    values = np.array(list(shares.values()))
    layers = values.shape[1]
    many = layers > LEGIBLE  # then there is room for the means alone
    words = np.array([["" if many else f"{x:.2g}" for x in share] for share in shares.values()])
    values /= max(values.max(), 1e-9)
    columns = ["" if many and i % 5 else f"-{i}" for i in range(layers, 0, -1)]
    names = [f"{path}, {np.mean(x):.2g} %" if many else path for path, x in shares.items()]
    drawn = plot_panels.heatmap(values, names, columns, words, "of the largest share")

    def draw(axis):
        drawn(axis)
        axis.set_xlabel("layer, from the last", fontsize=9)

    return plots.panels({f"{task}, {lane.name}: % of the weights changed": draw}, 1, (7.0, 3.4))


def write(run, model: lm.Pretrained, found: dict, held_out: dict, checked: str, overlaps: dict) -> dict:
    """Writes the tables and the figures; returns the numbers.

    Args:
      found: (task, lane) ↦ the results of its seeds.
      held_out: task ↦ the number of problems held out.
      checked: what was found of a patch on a fresh copy.
      overlaps: (task, lane) ↦ `overlap`.
    """
    rows = rows_of(found, held_out)
    pairs = [[task, lane.name, f"{100 * share:.1f} %"] for (task, lane), share in overlaps.items()]
    text = [
        table(rows, lm.num_params(model.config)),
        f"± standard deviation over seeds; {SPREAD}",
        f"weights that differ after an iteration, mean, and after all\n{shipped(found)}",
        tables.table(pairs, ["task", "lane", "changed by both of two seeds, of those changed by any"]),
        checked,
    ]
    drawn = {"sparsity": against_bytes(rows), "where": where(found)}
    numbers = {f"{task}, {name}": row for (task, name), row in rows.items()}
    return run.write(numbers, text, {name: figure for name, figure in drawn.items() if figure})
