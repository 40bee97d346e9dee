"""Lower bound of a job's time by its matrix products: operations counted, and a measured rate.

Products alone are counted, a multiplication and an addition as two; a query is charged for the
keys it may see and no others. A backward pass is two products for each one of the forward pass.
"""

import math
from typing import NamedTuple

import jax

from experiments.benchmarks import clock
from experiments.support.run import tables
from proxlm import lm

Shape = tuple[int, int, int]


class Limit(NamedTuple):
    """A measured speed limit in FLOP/s: of the best square, and of a job's own mix of shapes."""

    square: float
    own: float


def dense(model: lm.ModelConfig) -> int:
    """FLOPs per token of the layers' kernels: 2·L·(D·(H + 2·H_kv)·d + H·d·D + 3·D·F)."""
    attention = model.width * model.head_width * (2 * model.num_heads + 2 * model.num_kv_heads)
    return 2 * model.num_layers * (attention + 3 * model.width * model.hidden_width)


def attention(model: lm.ModelConfig, length: int) -> int:
    """FLOPs per sequence of q·kᵀ and of weights·v, causal: 4·L·H·d · T·(T + 1)/2."""
    pairs = length * (length + 1) // 2
    return 4 * model.num_layers * model.num_heads * model.head_width * pairs


def head(model: lm.ModelConfig) -> int:
    """FLOPs per position at which the heads are read: 2·D·V, and 2·D of a value head."""
    outputs = model.vocab_size * model.lm_head + model.value_head
    return 2 * model.width * outputs


def forward(model: lm.ModelConfig, batch: int, length: int, read: int) -> int:
    """FLOPs of B sequences, heads read at R positions: B·(T·dense + attention(T) + R·head)."""
    return batch * (length * dense(model) + attention(model, length) + read * head(model))


def training_step(model: lm.ModelConfig, batch: int, length: int) -> int:
    """FLOPs of one step on windows of T + 1 tokens: 3·forward(B, T, T)."""
    return 3 * forward(model, batch, length, length)


def sampling(model: lm.ModelConfig, batch: int, prompt: int, response: int) -> int:
    """FLOPs of cached sampling, P + R tokens: forward(B, P + R − 1, R).

    Each token is seen once, and the last not at all.
    """
    return forward(model, batch, prompt + response - 1, response)


def ppo(
    policy: lm.ModelConfig, critic: lm.ModelConfig, batch: int, prompt: int, response: int, epochs: int
) -> int:
    """FLOPs of an iteration with a separate critic: π + (π + V) + 3·epochs·(π + V).

    π and V are the forward passes of policy and critic over P + R − 1 tokens. The first is the
    sampling, the second the reference's log-probabilities and the old values.
    """
    of_policy, of_critic = (sampling(model, batch, prompt, response) for model in (policy, critic))
    return of_policy + (1 + 3 * epochs) * (of_policy + of_critic)


def shapes(model: lm.ModelConfig, rows: int) -> dict[Shape, int]:
    """Counts of the products [N, K]·[K, M] in a forward pass of N tokens, by (N, K, M)."""
    heads = model.num_heads * model.head_width
    packed = (model.num_heads + 2 * model.num_kv_heads) * model.head_width
    counts = {
        (rows, model.width, packed): model.num_layers,
        (rows, heads, model.width): model.num_layers,
        (rows, model.width, 2 * model.hidden_width): model.num_layers,
        (rows, model.hidden_width, model.width): model.num_layers,
    }
    if model.lm_head:
        last = (rows, model.width, model.vocab_size)
        counts[last] = counts.get(last, 0) + 1
    return counts


def mixed_rate(counts: dict[Shape, int], rates: dict[Shape, float]) -> float:
    """FLOP/s of products one after another, each at its own rate: Σ flops / Σ (flops / rate)."""
    flops = {shape: count * 2 * math.prod(shape) for shape, count in counts.items()}
    return sum(flops.values()) / sum(flops[shape] / rates[shape] for shape in flops)


def squares(quick: bool) -> list[Shape]:
    """Square shapes, of which one comes near the device's peak."""
    if quick:
        return [(512, 512, 512)]
    sizes = (512, 1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    return [(size, size, size) for size in sizes]


def rates(wanted: list[Shape], settings: clock.Settings, dtype: str = "float32") -> dict[Shape, float]:
    """Best measured FLOP/s of [N, K]·[K, M] for every wanted (N, K, M)."""
    loops = {shape: there_and_back(shape, dtype) for shape in wanted}
    timings = clock.measure({shape: call for shape, (call, _) in loops.items()}, settings)
    return {shape: flops / timings[shape].best for shape, (_, flops) in loops.items()}


def there_and_back(shape: Shape, dtype: str):
    """A function that chains x·A·B many times inside one call, and the FLOPs of a call.

    A is [K, M] and B is [M, K] with entries of variance 1/M and 1/K, so that the numbers grow or
    fade by little in each round; over thousands they would become denormal, which is slow.
    """
    rows, inner, columns = shape
    work = 2e9 if jax.default_backend() == "cpu" else 2e12
    flops = 4 * math.prod(shape)
    loops = min(64, max(1, int(work / flops)))
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key, *sizes: jax.random.normal(key, sizes).astype(dtype)
    x = draw(keys[0], rows, inner)
    there = draw(keys[1], inner, columns) / math.sqrt(columns)
    back = draw(keys[2], columns, inner) / math.sqrt(inner)

    @jax.jit
    def chain(x, there, back):
        return jax.lax.fori_loop(0, loops, lambda _, x: x @ there @ back, x)

    return lambda: chain(x, there, back).block_until_ready(), loops * flops


def limits(
    jobs: dict[str, dict[Shape, int]], settings: clock.Settings, quick: bool = False
) -> tuple[dict[str, Limit], str]:
    """Measures the limit of every job, given its shapes; returns them and a table."""
    wanted = dict.fromkeys(squares(quick))
    for counts in jobs.values():
        wanted |= dict.fromkeys(counts)
    measured = rates(list(wanted), settings)
    best = max(measured[shape] for shape in squares(quick))
    found = {name: Limit(best, mixed_rate(counts, measured)) for name, counts in jobs.items()}
    rows = [_row(shape, "float32", measured[shape]) for shape in squares(quick)]
    if jax.default_backend() != "cpu":
        halves = rates(squares(quick), settings, "bfloat16")
        rows += [_row(shape, "bfloat16", rate) for shape, rate in halves.items()]
    rows += [[f"shapes of {name}", "float32", round(limit.own / 1e9)] for name, limit in found.items()]
    return found, tables.table(rows, ["matrix products", "type", "best GFLOP/s"])


def _row(shape, dtype, rate):
    return [" x ".join(map(str, shape)), dtype, round(rate / 1e9)]


def floors(flops: int, limit: Limit) -> dict[str, float]:
    """Seconds that the products alone would take, by the two limits."""
    return {"products, best square": flops / limit.square, "products, own shapes": flops / limit.own}
