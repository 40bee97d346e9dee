"""Sensitivity of training to initialisation: 64 seeds of six schemes at three depths.

    python -m experiments.initialisation           # writes report.txt and initialisation.png

2 CPU cores (AMD EPYC, 2.6 GHz), 1 minute. Nets of width 32 on the next character of the plays, 200
steps of gradient descent at 0.4, n=64 a cell. Two layers learn from all seeds of Glorot, He and
orthogonal kernels, eight from 6, 28 and 8 %, 32 from none: no scheme carries plain layers that far
in so few steps. Normal(0, 1) diverges in 12, 100 and 100 %, He at 32 layers in 41 %; zeros and
normal(0, 0.01) never diverge and never learn.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.models import deep_nets
from experiments.support.run import cached_results, cli, configs, plot_panels, plots, runs, tables
from proxlm import _validation, training


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    seeds: int = configs.field(64, smoke=2)  # nets of every scheme and depth
    depths: tuple[int, ...] = configs.field((2, 8, 32), smoke=(2, 16))  # hidden layers
    context: int = 4  # characters a net reads
    width: int = configs.field(32, smoke=16)  # units of a layer
    batch: int = 32  # windows of a step
    steps: int = configs.field(200, smoke=40)  # of gradient descent
    learning_rate: float = 0.4  # of gradient descent
    held_out: int = configs.field(1024, smoke=64)  # windows to judge by
    seed: int = 0  # of the nets and their batches

    def validate(self) -> None:
        _validation.at_least(1, depths=min(self.depths))
        configs.check_positive(self, "learning_rate")


def learn(key, start, data: deep_nets.Data, config: Config):
    """The held-out loss after training from a start, infinite where the weights are not finite."""
    rows = jax.random.randint(key, (config.steps, config.batch), 0, len(data.train))
    found = training.fit(
        deep_nets.loss,
        start,
        optax.chain(optax.sgd(config.learning_rate)),
        lambda step: data.train[rows[step]],
        steps=config.steps,
        every=config.steps,
    )
    value = deep_nets.loss(found.state.params, data.held_out)
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def all_starts(config: Config, size: int, depth: int):
    """Keys and nets, `[schemes * seeds]`: the seeds of one scheme after those of another."""
    keys = jax.random.split(jax.random.key(config.seed), 2 * config.seeds)
    shape = {"context": config.context, "size": size, "width": config.width, "depth": depth}
    draw = lambda scheme: jax.vmap(lambda key: deep_nets.init(key, scheme, **shape))
    nets = [draw(scheme)(keys[: config.seeds]) for scheme in deep_nets.SCHEMES.values()]
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *nets)
    return jnp.tile(keys[config.seeds :], len(nets)), together


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Trains every net, those of a depth in one vmap; returns the numbers of the report."""
    data = deep_nets.read(run.data, config.context, 50_000, config.held_out, config.seed)
    train = jax.vmap(functools.partial(learn, data=data, config=config))

    def losses_at(depth):
        final = jax.jit(train)(*all_starts(config, data.size, int(depth)))
        return {"losses": final.reshape(len(deep_nets.SCHEMES), -1)}

    found = cached_results.compute_each(run, "depths", [*map(str, config.depths)], losses_at)
    named = lambda final: dict(zip(deep_nets.SCHEMES, final["losses"], strict=True))
    return write(run, {int(depth): named(final) for depth, final in found.items()}, data)


def fates(final: np.ndarray, data: deep_nets.Data) -> dict[str, float]:
    """Shares of nets worse than a uniform guess, no better than frequencies, and better."""
    diverged = final > np.log(data.size) + 0.01
    learnt = final < data.frequency_loss - 0.1
    return {"diverged": diverged.mean(), "stuck": (~diverged & ~learnt).mean(), "learnt": learnt.mean()}


def write(run, found, data: deep_nets.Data) -> dict[str, Any]:
    """Writes the report: the losses at which the nets of each scheme and depth end."""
    rows: list[list] = []
    numbers: dict[str, Any] = {"frequency_loss": data.frequency_loss}
    for depth, schemes in found.items():
        for name, final in schemes.items():
            shares = fates(final, data)
            quantiles = [f"{q:.3f}" for q in np.quantile(final, (0.05, 0.5, 0.95), method="lower")]
            percents = [f"{100 * share:.0f} %" for share in shares.values()]
            rows.append([depth, name, *quantiles, *percents])
            numbers[f"{depth} {name}"] = shares | {"median": float(np.median(final))}
    seeds = len(next(iter(found[min(found)].values())))
    headers = ["layers", "scheme", "5 %", "median", "95 %", "diverged", "stuck", "learnt"]
    report = [
        f"held-out loss in nats at the end, {seeds} seeds each",
        tables.table(rows, headers),
        f"guessing by frequency costs {data.frequency_loss:.3f}, uniformly {np.log(data.size):.3f}\n"
        "diverged: worse than uniformly; learnt: at least 0.1 better than by frequency; stuck: between",
    ]
    top = np.log(data.size) + 0.5
    panels = {
        f"{depth} layers": plot_panels.histogram(
            {name: np.minimum(final, top) for name, final in schemes.items()},
            "held-out loss, nats",
            marks={"by frequency": data.frequency_loss},
        )
        for depth, schemes in found.items()
    }
    note = f"what is above {top:.1f}, or not a number, is counted in the last bin"
    return run.write(numbers, report, {"initialisation": plots.panels(panels, note=note)})


if __name__ == "__main__":
    cli.run(main)
