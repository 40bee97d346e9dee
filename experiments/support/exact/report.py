"""What the experiment without sampling shows: tables, bars and curves."""

import numpy as np

from experiments.support.run import runs, tables


def write(run, gradients, placements, gaps) -> None:
    """Prints and plots what was measured."""
    headers = ["scale", "cosine", "bias", "noise"]
    show = lambda rows, title: tables.table(
        [[name, *(row[h] for h in headers)] for name, row in rows.items()], [title, *headers]
    )
    ends = [
        [family, name, float(values[len(values) // 5]), float(values[-1])]
        for family, members in gaps.items()
        for name, values in members.items()
    ]
    text = "\n\n".join(
        [
            "The mean gradient beside that of the expected reward (noise: deviation / length):",
            show(gradients, "algorithm"),
            "The mean gradient of the KL beside that of the divergence, no reward:",
            show(placements, "KL"),
            "Sub-optimality J* - J after a fifth of the iterations, and after all:",
            tables.table(ends, ["", "", "a fifth", "all"]),
        ]
    )
    print(text)
    (run.path / "report.txt").write_text(text + "\n")
    for kind, rows in {"gradient": gradients, "placement": placements}.items():
        runs.truncate_log(run, kind)
        for name, row in rows.items():
            runs.log(run, kind, name=name, **row)
    panels = {
        family: {n: (np.arange(len(v)), np.maximum(v, 1e-12)) for n, v in members.items()}
        for family, members in gaps.items()
    }
    tables.curves(run.path / "suboptimality.png", panels, xlabel="iteration", log_scale=tuple(panels))
    columns = headers[1:]
    tables.bars(run.path / "gradients.png", gradients, columns, "gradient of the expected reward")
    tables.bars(run.path / "placements.png", placements, columns, "gradient of the divergence")
    print(f"written to {run.path}")
