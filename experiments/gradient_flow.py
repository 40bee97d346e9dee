"""Vanishing and exploding gradients in a deep net, layer by layer, and the remedies.

    python -m experiments.gradient_flow           # writes report.txt and gradient_flow.png

2 CPU cores (Intel Xeon, shared with much else), 2½ minutes of CPU. 32 plain layers on the next
character of the plays, n=8: with half of He's scale the signal that comes back to the first layer is
1e-10 of that at the last, with 1.5 times it 8e4 times as large. Clipping keeps the second finite, but
nothing is learnt; Adam learns from He's scale (7 of 8), not from the others: no link brings back a
signal that is lost in the net. Residual layers keep it within 1.0 to 1.2 at each scale and learn from
all 24 starts; normalised ones begin at 0.1 to 0.3, lose it within a few steps and learn from none.
What clipping does cure is a learning rate that is too large: 25 times that rate ends in numbers that
are not finite on residual layers (24 of 24); clipped, all 24 learn, to a loss of 2.60, not 2.65.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax

from experiments.support.models import deep_nets
from experiments.support.run import cached_results, cli, configs, plot_panels, plots, runs, tables
from proxlm import _validation, training


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    seeds: int = configs.field(8, smoke=2)  # nets of every variant
    depth: int = configs.field(32, smoke=12)  # hidden layers
    context: int = 4  # characters a net reads
    width: int = configs.field(32, smoke=16)  # units of a layer
    batch: int = 32  # windows of a step
    steps: int = configs.field(500, smoke=20)  # of training
    checks: int = configs.field(50, smoke=5)  # at which gradients are looked at
    small: float = 0.5  # of He's scale of the kernels, where gradients vanish
    large: float = 1.5  # and where they explode
    rate: float = 0.4  # of gradient descent
    fast_rate: float = 10.0  # at which it diverges, even on residual layers
    max_norm: float = 0.1  # of the clipped gradient at this rate
    adam_rate: float = 3e-3  # learning rate of Adam
    held_out: int = configs.field(1024, smoke=64)  # windows to judge by
    seed: int = 0  # of the nets and their batches

    def validate(self) -> None:
        if self.steps % self.checks:
            raise _validation.invalid("checks", self.checks, f"a divisor of steps={self.steps}")


class Variant(NamedTuple):
    """A kind of layer, and the chain that trains it."""

    kind: str
    optimizer: optax.GradientTransformation


def variants(config: Config) -> dict[str, Variant]:
    """The plain net, and remedies: another optimizer, another kind of layer, or both."""
    descent = optax.sgd(config.rate)
    adam = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(config.adam_rate))
    clipped = optax.chain(optax.clip_by_global_norm(1.0), descent)
    fast = optax.sgd(config.fast_rate)
    fast_clipped = optax.chain(optax.clip_by_global_norm(config.max_norm), fast)
    return {
        "plain": Variant("plain", descent),
        "clipped": Variant("plain", clipped),
        "Adam": Variant("plain", adam),
        "residual": Variant("residual", descent),
        "residual, fast": Variant("residual", fast),
        "residual, fast, clipped": Variant("residual", fast_clipped),
        "normalised": Variant("normalised", descent),
        "normalised, Adam": Variant("normalised", adam),
    }


class Outcome(NamedTuple):
    """Of each seed: norms of gradients `[checks + 1, depth]`, and held-out loss at the end.

    The gradient of a bias is the signal that comes back to its layer. That of a kernel is this
    signal times what the layer reads, which vanishes in the other direction.
    """

    biases: Any
    kernels: Any
    loss: Any


def layer_norms(params, windows, kind: str):
    """‖∂L/∂b‖₂ and ‖∂L/∂W‖₂ of each hidden layer, `[depth]`, input side first."""
    slopes = jax.grad(deep_nets.loss)(params, windows, kind)["hidden"]
    norm = lambda rows: jnp.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    return norm(slopes["bias"]), norm(slopes["kernel"])


def learn(key, data: deep_nets.Data, variant: Variant, scale: float, config: Config) -> Outcome:
    """One net from its start, with He's kernels times a scale."""
    key_net, key_rows = jax.random.split(key)
    he = deep_nets.SCHEMES["He"]
    shape = {"context": config.context, "size": data.size, "width": config.width, "depth": config.depth}
    start = deep_nets.init(key_net, lambda *args: scale * he(*args), **shape)
    rows = jax.random.randint(key_rows, (config.steps, config.batch), 0, len(data.train))
    probe = functools.partial(layer_norms, windows=data.held_out[:128], kind=variant.kind)
    found = training.fit(
        functools.partial(deep_nets.loss, kind=variant.kind),
        start,
        variant.optimizer,
        lambda step: data.train[rows[step]],
        steps=config.steps,
        every=config.steps // config.checks,
        record=probe,
    )
    value = deep_nets.loss(found.state.params, data.held_out, variant.kind)
    join = lambda first, later: jnp.concatenate([first[None], later])
    biases, kernels = jax.tree.map(join, probe(start), found.history.recorded)
    return Outcome(biases, kernels, jnp.where(jnp.isfinite(value), value, jnp.inf))


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Trains every variant from small and from large kernels; returns the numbers of the report."""
    data = deep_nets.read(run.data, config.context, 50_000, config.held_out, config.seed)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    starts = {"small": config.small, "He": 1.0, "large": config.large}
    by_name = variants(config)

    def from_all_starts(name):
        one = functools.partial(learn, data=data, variant=by_name[name], config=config)
        many = jax.jit(jax.vmap(lambda key, scale: one(key, scale=scale), (0, None)))
        return {start: many(keys, scale)._asdict() for start, scale in starts.items()}

    results = cached_results.compute_each(run, "variants", tuple(by_name), from_all_starts)
    found = {
        (start, name): Outcome(**outcome)
        for name, outcomes in results.items()
        for start, outcome in outcomes.items()
    }
    return write(run, found, data, config)


def ratio(norms: np.ndarray) -> str:
    """The gradient of the first layer over that of the last, the median of `[seeds, depth]`."""
    finite = norms[np.isfinite(norms).all(axis=1)].astype(np.float64)
    live = finite[finite[:, -1] > 0]
    if len(live):
        return f"{np.median(live[:, 0] / live[:, -1]):.1e}"
    return "dead" if len(finite) else "not finite"


def write(run, found, data: deep_nets.Data, config: Config) -> dict[str, Any]:
    """Writes the report: a table of the variants, and their gradients by layer and step."""
    rows: list[list] = []
    numbers: dict[str, Any] = {"frequency_loss": data.frequency_loss}
    for (start, name), outcome in found.items():
        first, last = (ratio(outcome.biases[:, i]) for i in (0, -1))
        learnt = outcome.loss < data.frequency_loss - 0.1
        finite = outcome.loss[np.isfinite(outcome.loss)]
        end = f"{np.median(finite):.3f}" if finite.size else "none finite"
        largest = f"{np.median(outcome.kernels[:, 0].max(axis=1)):.1e}"
        rows.append([start, name, first, last, largest, end, f"{learnt.sum()} of {learnt.size}"])
        numbers[f"{start}, {name}"] = {
            "ratio_at_start": first,
            "ratio_at_end": last,
            "loss": outcome.loss,
            "learnt": int(learnt.sum()),
        }
    rows.sort(key=lambda row: ("small", "He", "large").index(row[0]))
    headers = ["kernels", "variant", "first / last bias, start", "end", "largest of a kernel"]
    report = [
        f"{config.depth} layers, {config.seeds} seeds, medians; kernels {config.small}, 1 and "
        f"{config.large} times He's",
        tables.table(rows, [*headers, "held-out loss", "learnt"]),
        "first / last: norms of the gradients of the first and the last hidden bias;\n"
        "largest: of a kernel's gradient at the start; learnt: at least 0.1 nats better than\n"
        f"guessing by frequency, which costs {data.frequency_loss:.3f}",
    ]
    return run.write(numbers, report, {"gradient_flow": draw(found, config)})


def draw(found, config: Config) -> matplotlib.figure.Figure:
    """Norms of the first seed's gradients, a panel a start and variant."""
    panels = {}
    for start in ("small", "large"):
        for name in variants(config):
            with np.errstate(divide="ignore"):
                logs = np.log10(found[start, name].biases[0].astype(np.float64))
            panels[f"{start} kernels, {name}"] = plot_panels.image(
                logs.T,
                "step",
                "layer",
                extent=(0, config.steps, 0, config.depth),
                limits=(-8, 4),
                unit="log10 ‖∂L/∂b‖",
            )
    return plots.panels(panels, columns=8, size=(3.2, 2.6), note="grey: zero, or not a number")


if __name__ == "__main__":
    cli.run(main)
