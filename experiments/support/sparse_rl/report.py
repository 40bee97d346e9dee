"""The table and the figures of sparse_rl."""


def write(run, config, model, found):
    """Writes them."""
    numbers = {}
    for (task, lane), results in found.items():
        for i, r in enumerate(results):
            held = slice(0, config.held_out)
            mean = lambda x, part: float(x[part].mean())
            row = {
                "before": mean(r["start"]["right"], held),
                "held": mean(r["end"]["right"], held),
                "greedy": mean(r["end"]["greedy"], held),
                "valid": mean(r["end"]["right"], slice(config.held_out, None)),
                "kl": mean(r["end"]["kl"], held),
                "changed": int(r["changed"]),
                "bytes": int(r["bytes"]),
                "seconds": float(r["seconds"]),
                "reward": [float(x) for x in r["log"].get("reward", r["log"].get("loss"))[-5:]],
            }
            for name, c in r.items():
                if name.startswith("cut "):
                    row[name] = [int(c["changed"]), int(c["bytes"]), mean(c["end"]["right"], held), mean(c["end"]["kl"], held)]
            numbers[f"{task} {lane.name}@{lane.rate:g} {i + config.seed}"] = row
            print(task, lane.name, lane.rate, i + config.seed, row, flush=True)
    return run.write(numbers, [""], {})
