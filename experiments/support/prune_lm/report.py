"""The table of prune_lm, and the model that is cut out for real: saved, and timed beside the whole one."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from experiments.support import Refusal
from experiments.support.run import cached_results, plots, tables
from proxlm import lm


def cut_out(run, model: lm.Pretrained, params: Any, windows: np.ndarray, tokens: int) -> dict[str, Any]:
    """Shrinks and saves a pruned model; its size, its difference, and seconds of decoding.

    Raises:
      Refusal: the smaller model does not give the logits of the one with zeros.
    """

    def compute():
        smaller, config = lm.shrink(params, model.config)
        logits = [_logits(params, model.config, windows), _logits(smaller, config, windows)]
        difference = np.max(np.abs(logits[1] - logits[0])) / np.max(np.abs(logits[0]))
        if not difference < 1e-4:
            raise Refusal(f"the smaller model differs by {difference:.2g} of the largest logit")
        lm.save(run.path / "model", model._replace(params=smaller, config=config))
        pairs = {"before": (model.params, model.config), "after": (smaller, config)}
        decoding = lambda params, config: _decoding(params, config, windows[:, :8], tokens)
        seconds = {name: decoding(*pair) for name, pair in pairs.items()}
        sizes = {name: lm.num_params(own) for name, (_, own) in pairs.items()}
        shape = {name: getattr(config, name) for name in ("hidden_width", "num_heads", "num_kv_heads")}
        return {"difference": difference, "seconds": seconds, "parameters": sizes, "shape": shape}

    return cached_results.compute_once(run, "cut out", compute)


def _logits(params, config, windows):
    return np.asarray(jax.jit(lm.apply, static_argnames="config")(params, jnp.asarray(windows), config))


def _decoding(params, config, prompt, tokens, calls=3):
    """CPU seconds a token of greedy decoding, the best of the calls after the first."""
    sample = jax.jit(lm.sample, static_argnames=("config", "num_tokens", "sampling"))
    settings = {"config": config, "num_tokens": tokens, "sampling": lm.SamplingConfig(greedy=True)}
    seconds = []
    for _ in range(calls):
        began = time.process_time()
        jax.block_until_ready(sample(jax.random.key(0), params, jnp.asarray(prompt), **settings))
        seconds.append((time.process_time() - began) / tokens)
    return min(seconds[1:])


def write(run, dense: dict, found: dict, best: tuple, small: dict) -> dict[str, Any]:
    """Writes the table and the figure; returns the numbers.

    Args:
      dense: loss and perplexity of the whole model.
      found: ((share of neurons, heads), method) ↦ the results of the seeds.
      best: the one that was cut out.
      small: of `cut_out`.
    """
    name = lambda level: f"{100 * level[0]:.0f} % of the neurons, {level[1]} heads of each key-value head"
    rows = [["nothing", "", 1, f"{float(dense['perplexity']):.2f}", ""]]
    for (level, method), results in found.items():
        perplexity = [float(result["perplexity"]) for result in results]
        errors = np.mean([result["errors"] for result in results])
        spread = tables.mean_spread(perplexity, 2, count=False)
        rows.append([name(level), method, len(results), spread, f"{100 * errors:.1f} %"])
    headers = ["removed", "by", "n", "held-out perplexity", "error of a layer, on its own text"]
    shares = small["parameters"]
    seconds = {part: 1000 * float(x) for part, x in small["seconds"].items()}
    about = [
        f"Cut out and saved in model/: {name(best[0])}, by {best[1]}, of seed {run.config.seed}.",
        f"{int(shares['before']):,} parameters before, {int(shares['after']):,} after; logits differ by "
        f"{float(small['difference']):.1g} of the largest from those of the model with zeros.",
        f"Decoding: {seconds['before']:.1f} CPU ms a token before, {seconds['after']:.1f} after.",
    ]
    lanes = {f"{100 * level[0]:g} % + {level[1]}, {method}": r for (level, method), r in found.items()}
    numbers = {"dense": dense, "small": small}
    numbers |= {lane: [row["perplexity"] for row in results] for lane, results in lanes.items()}
    return run.write(numbers, [tables.table(rows, headers), "\n".join(about)], {"perplexity": draw(lanes)})


def draw(lanes: dict) -> matplotlib.figure.Figure:
    """A bar a lane: its mean perplexity."""
    mean = lambda rows: float(np.mean([row["perplexity"] for row in rows]))
    means = {lane: {"perplexity": mean(rows)} for lane, rows in lanes.items()}
    return plots.bars(means, ["perplexity"])
