"""Report of `experiments.sparse_lm`: losses of equally small models, and the speed of one."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import small_lm
from experiments.support.run import plots, tables
from proxlm import lm

TARGETS = (0.5, 0.8)


def write(run, results, plays: small_lm.Setup):
    """Writes the report of the results: (method, seed) ↦ params, stacked over lanes."""
    points = measure(results, plays)
    methods = list(dict.fromkeys(method for method, _ in results))
    at = {m: {t: at_share(points[m], t) for t in TARGETS} for m in methods}
    rows = [[m, *(spread(at[m][t]) for t in TARGETS), ranges(points[m])] for m in methods]
    report = [
        "held-out loss, nats per character, by the share of MLP neurons removed:",
        tables.table(rows, ["", *(f"{t:.0%} removed" for t in TARGETS), "shares removed"]),
    ]
    numbers = {"losses": at, "points": points}
    worse = {}
    for other in methods[3:]:
        gaps = [at[other][t] - at["dual averaging"][t] for t in TARGETS]
        worse[f"{other}: worse than dual averaging by"] = ", ".join(map(spread, gaps))
    report.append("\n".join(f"{name} {value}" for name, value in worse.items()))
    smaller = speed(results, points, plays.held_out, plays.model)
    report.append("\n".join(f"{name}: {value}" for name, value in smaller.items()))
    series = {"held-out loss, nats per character": {m: band(points[m]) for m in methods}}
    figure = plots.curves(series, "share of MLP neurons removed")
    return run.write(numbers | smaller, report, {"pareto": figure})


def measure(results, plays):
    """Method ↦ {"share", "loss", "heads"}, arrays `[seeds, lanes]`."""
    evaluate = jax.jit(jax.vmap(plays.evaluate))
    points = {}
    for (method, _), params in results.items():
        losses = np.asarray(evaluate(params)["held_out_loss"])
        lane = lambda i, params=params: jax.tree.map(lambda x: x[i], params)
        lanes = [lm.live_units(lane(i), plays.model) for i in range(len(losses))]
        found = {
            "share": np.array([1 - found.hidden.mean() for found in lanes]),
            "loss": losses,
            "heads": np.array([found.heads.sum() for found in lanes]),
        }
        points.setdefault(method, []).append(found)
    stack = lambda found: {name: np.stack([row[name] for row in found]) for name in found[0]}
    return {method: stack(found) for method, found in points.items()}


def at_share(points, target) -> np.ndarray:
    """Loss of each seed at a share, on the line between its neighbours; NaN beyond all of them.

    The losses are convex in the share, so the line says too much rather than too little.
    """
    losses = []
    for share, loss in zip(points["share"], points["loss"], strict=True):
        order = np.argsort(share)
        # A share to be pruned is met to within one neuron.
        inside = share.min() - 0.01 <= target <= share.max() + 0.01
        losses.append(np.interp(target, share[order], loss[order]) if inside else np.nan)
    return np.array(losses)


def spread(values) -> str:
    """Mean and spread over the seeds whose models reach on both sides of the share."""
    inside = values[~np.isnan(values)]
    return tables.mean_spread(inside, 4) if len(inside) else "out of range"


def ranges(points) -> str:
    return " ".join(f"{share:.2f}" for share in points["share"].mean(axis=0))


def band(points):
    share = points["share"].mean(axis=0)
    order = np.argsort(share)
    return plots.band(points["loss"][:, order], share[order])


def speed(results, points, held_out, model):
    """Cuts the dead out of the model nearest to 80 % and times it beside the whole one."""
    seed, lane = np.unravel_index(
        np.argmin(np.abs(points["dual averaging"]["share"] - TARGETS[-1])),
        points["dual averaging"]["share"].shape,
    )
    stacked = [params for (method, _), params in results.items() if method == "dual averaging"]
    params = jax.tree.map(lambda x: x[lane], stacked[seed])
    smaller, small = lm.shrink(params, model)
    apply = jax.jit(lm.apply, static_argnames="config")
    tokens = jnp.asarray(held_out[:64, :-1])
    difference = apply(params, tokens, config=model) - apply(smaller, tokens, config=small)
    score = jax.jit(lm.score, static_argnames="config")
    draw = functools.partial(lm.sample, num_tokens=model.max_length - 4)
    draw = jax.jit(draw, static_argnames="config")
    models = {"whole": (params, model), "smaller": (smaller, small)}
    jobs = {
        "scoring": lambda p, c: score(p, tokens, config=c),
        "sampling": lambda p, c: draw(jax.random.key(0), p, tokens[:, :4], config=c),
    }
    seconds = {
        name: race({size: functools.partial(jobs[name], *given) for size, given in models.items()})
        for name in jobs
    }
    return {
        "neurons kept in each layer": lm.live_units(params, model).hidden.sum(axis=1).tolist(),
        "heads kept in each layer": lm.live_units(params, model).heads.sum(axis=1).tolist(),
        "hidden width, padded to the fullest": f"{small.hidden_width} of {model.hidden_width}",
        "parameters": f"{lm.num_params(small):,} of {lm.num_params(model):,}",
        "largest difference of logits": float(jnp.max(jnp.abs(difference))),
        **{f"{n} is faster by": round(s["whole"] / s["smaller"], 2) for n, s in seconds.items()},
    }


def race(functions, repeats=15):
    """Least seconds of each function, run in turns."""
    for function in functions.values():
        jax.block_until_ready(function())
    taken = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            taken[name].append(time.perf_counter() - began)
    return {name: min(seconds) for name, seconds in taken.items()}
