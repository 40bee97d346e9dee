"""Report of `experiments.overoptimisation`: curves over the root of the KL, and forms that fit them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from experiments.support.run import plots, tables
from proxlm.policy import best_of_n

COUNTS = tuple(2**k for k in range(11))  # n of the best of n, up to an eighth of the pool
COEFS = tuple(float(x) for x in np.geomspace(0.3, 10.0, 10))  # β of the tilted pool
GRID = np.linspace(0.0, 8.0, 41)  # roots of the KL at which seeds of PPO are averaged
NEAR, FAR = 2.6, 5.2  # roots of the KL between which gold turns over
LEAST = 0.5  # a root of the KL below which an estimate of it is mostly noise


class Curve(NamedTuple):
    """Points `[seeds, N]` on the way of an optimiser away from the language model."""

    distance: Any  # √KL
    proxy: Any
    gold: Any


def best(proxy, gold) -> Curve:
    """The best of n by proxy, from a pool `[seeds, pool]`, and its bound of the KL."""
    each = jax.vmap(best_of_n.expected, (None, None, 0))
    counts = jnp.array([n for n in COUNTS if 8 * n <= proxy.shape[1]])
    mean = jax.jit(jax.vmap(lambda values, proxy: each(values, proxy, counts)))
    distance = np.tile(np.sqrt(best_of_n.kl_bound(counts)), (len(proxy), 1))
    return Curve(distance, *map(np.asarray, (mean(proxy, proxy), mean(gold, proxy))))


def tilted(proxy, gold) -> Curve:
    """The optimum of E[proxy] - β KL, π* ∝ π exp(proxy/β), as weights of a pool `[seeds, pool]`."""

    def one(coef, proxy, gold):
        weights = jax.nn.softmax(proxy / coef)
        kl = jnp.sum(weights * jnp.log(jnp.maximum(weights * weights.size, 1e-30)))
        return Curve(jnp.sqrt(jnp.maximum(kl, 0.0)), weights @ proxy, weights @ gold)

    coefs = jnp.array(COEFS[::-1])
    over = jax.vmap(jax.vmap(one, (0, None, None)), (None, 0, 0))
    return Curve(*map(np.asarray, jax.jit(over)(coefs, proxy, gold)))


def fit(curve: Curve, form: str) -> dict[str, np.ndarray]:
    """Least squares of gold by d (α - β d), "best of n", or d (α - β log d), "policy"; per seed."""
    found = []
    for d, gold in zip(curve.distance, curve.gold, strict=True):
        gold, d = gold[d >= LEAST], d[d >= LEAST]
        if len(d) < 3:
            found.append([np.nan] * 3)
            continue
        design = np.stack([d, -d * (d if form == "best of n" else np.log(d))], axis=1)
        coefs = np.linalg.lstsq(design, gold)[0]
        rest = np.sum((gold - design @ coefs) ** 2) / np.sum((gold - gold.mean()) ** 2)
        found.append([*coefs, 1.0 - rest])
    return dict(zip(("α", "β", "R²"), np.array(found).T, strict=True))


def on_grid(curve: Curve) -> Curve:
    """The same at common distances, as far as every seed has gone; means of what lies about them.

    The KL of a policy is estimated, so that its curve goes back and forth: points are averaged.
    """
    reach = min(row.max() for row in curve.distance)
    grid = GRID[reach >= GRID]
    width = grid[1] - grid[0] if len(grid) > 1 else 1.0

    def smooth(d, values):
        weights = np.exp(-0.5 * ((grid[:, None] - d) / width) ** 2) + 1e-12
        return weights @ values / weights.sum(axis=1)

    rows = zip(curve.distance, curve.proxy, curve.gold, strict=True)
    pairs = [(smooth(d, proxy), smooth(d, gold)) for d, proxy, gold in rows]
    return Curve(np.tile(grid, (len(pairs), 1)), *map(np.array, zip(*pairs, strict=True)))


def policies(log, config) -> dict[tuple[int, float], Curve]:
    """(pairs, β) ↦ the way of PPO, of the log of its iterations."""
    stacked = {name: np.array([row[name] for row in log], float) for name in ("kl", "proxy", "gold")}
    root = np.sqrt(np.maximum(stacked["kl"], 0.0))
    lane = lambda i: Curve(*(x[:, i].T for x in (root, stacked["proxy"], stacked["gold"])))
    return {key: lane(i) for i, key in enumerate(config.lanes)}


def write(run, pool_proxy, pool_gold, log, config):
    """Writes the report; returns its numbers."""
    gold = np.asarray(pool_gold)
    curves, numbers = {}, {}
    for size, proxy in zip(config.pairs, np.asarray(pool_proxy), strict=True):
        right = (proxy[:, ::2] > proxy[:, 1::2]) == (gold[:, ::2] > gold[:, 1::2])
        numbers[f"accuracy, {size} pairs"] = np.mean(right, axis=1)
        curves[f"best of n, {size} pairs"] = ("best of n", best(proxy, gold))
        curves[f"π*, {size} pairs"] = ("best of n", tilted(proxy, gold))
    for (size, beta), curve in policies(log, config).items():
        curves[f"PPO, {size} pairs, β = {beta:g}"] = ("policy", curve)
    rows = [row_of(name, form, curve) for name, (form, curve) in curves.items()]
    spread = functools.partial(tables.mean_spread, digits=2)
    report = ["\n".join(f"{name}: {spread(value)}" for name, value in numbers.items())]
    headers = ["", "√KL", "proxy", "gold", "highest", "at √KL", "α", "β", "R²"]
    report.append("At the end, the highest gold on the way, and the forms that fit:")
    report.append(tables.table([row[0] for row in rows], headers))
    for name, (form, curve) in curves.items():
        if form == "policy" and curve.distance.max(axis=1).min() >= FAR:
            line, numbers[f"turn, {name}"] = turn(curve)
            report.append(f"{name}, from √KL {NEAR} to {FAR}: {line}")
    numbers |= {name: row[1] for name, row in zip(curves, rows, strict=True)}
    drawn = {name: curve for name, (_, curve) in curves.items()}
    return run.write(numbers, report, {"curves": draw(drawn, config)})


def turn(curve: Curve):
    """Changes of gold and proxy between two distances, in words and as arrays over seeds."""
    on = on_grid(curve)
    near, far = (int(np.argmin(np.abs(on.distance[0] - d))) for d in (NEAR, FAR))
    found = {name: (getattr(on, name)[:, near], getattr(on, name)[:, far]) for name in ("proxy", "gold")}
    words = [
        f"{name} {tables.mean_spread(a, 2, count=False).split(' (')[0]} -> {tables.mean_spread(b, 2)}"
        for name, (a, b) in found.items()
    ]
    fell = int(np.sum(found["gold"][1] < found["gold"][0]))
    return f"{', '.join(words)}; gold fell in {fell} of {len(on.gold)}", found


def row_of(name, form, curve: Curve):
    """A row of the table, and its numbers, an array over seeds each."""
    on = curve if form == "best of n" else on_grid(curve)
    top = np.argmax(on.gold, axis=1)
    at = lambda values: values[np.arange(len(top)), top]
    tail = max(1, curve.gold.shape[1] // 16) if form == "policy" else 1
    end = lambda values: values[:, -tail:].mean(axis=1)
    found = {
        "distance": end(curve.distance),
        "proxy": end(curve.proxy),
        "gold": end(curve.gold),
        "highest": at(on.gold),
        "at": at(on.distance),
        **fit(curve, form),
    }
    return [name, *(tables.mean_spread(x, 2, count=False) for x in found.values())], found


def draw(curves, config) -> matplotlib.figure.Figure:
    """Proxy and gold over √KL: a panel for the pool, for PPO by pairs, and for PPO by β."""
    few, many = config.pairs
    zero = config.kl_coefs[0]

    def lines(names):
        found = {}
        for name, label in names.items():
            curve = on_grid(curves[name]) if name.startswith("PPO") else curves[name]
            for kind in ("proxy", "gold"):
                found[f"{kind}, {label}"] = plots.band(getattr(curve, kind), curve.distance.mean(axis=0))
        return found

    sizes = {few: f"{few} pairs", many: f"{many} pairs"}
    betas = {f"PPO, {few} pairs, β = {beta:g}": f"β = {beta:g}" for beta in config.kl_coefs}
    panels = {
        "best of n": lines({f"best of n, {size} pairs": sizes[size] for size in sizes}),
        "PPO without a penalty": lines({f"PPO, {size} pairs, β = {zero:g}": sizes[size] for size in sizes}),
        f"PPO with a penalty β KL, {few} pairs": lines(betas),
    }
    note = (
        f"scores by proxy and gold: means over {config.seeds} golds, each with its comparisons and policies"
    )
    return plots.curves(panels, xlabel="√KL to the language model, nats½", note=note)
