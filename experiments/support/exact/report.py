"""Tables, bars and curves of `experiments.exact`."""

import numpy as np

from experiments.support.run import plots, tables


def write(run, gradients, placements, gaps) -> dict:
    """Writes the report; returns its numbers."""
    headers = ["scale", "cosine", "bias", "noise"]
    show = lambda rows, title: tables.table(
        [[name, *(row[h] for h in headers)] for name, row in rows.items()], [title, *headers]
    )
    ends = [
        [family, name, float(values[len(values) // 5]), float(values[-1])]
        for family, members in gaps.items()
        for name, values in members.items()
    ]
    series = {
        f"J* - J, {family}": {n: (np.arange(len(v)), np.maximum(v, 1e-12)) for n, v in members.items()}
        for family, members in gaps.items()
    }
    report = [
        "The mean gradient beside that of the expected reward (noise: deviation / length):",
        show(gradients, "algorithm"),
        "The mean gradient of the KL beside that of the divergence, no reward:",
        show(placements, "KL"),
        "Sub-optimality J* - J after a fifth of the iterations, and after all:",
        tables.table(ends, ["", "", "a fifth", "all"]),
    ]
    figures = {
        "suboptimality": plots.curves(series, xlabel="iteration", log_scale=tuple(series)),
        "gradients": plots.bars(gradients, headers, "gradient of the expected reward"),
        "placements": plots.bars(placements, headers, "gradient of the divergence"),
    }
    return run.write({"gradients": gradients, "placements": placements, "gaps": gaps}, report, figures)
