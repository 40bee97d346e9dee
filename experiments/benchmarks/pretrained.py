"""A model of SmolLM2-135M's shape, by proxlm and by transformers with PyTorch, from the same weights.

    python -m experiments.benchmarks.pretrained                      # one pinned core, processor time
    python -m experiments.benchmarks.pretrained --num-layers 2       # a first look

Prefill, greedy decoding against a cache, and an AdamW step; float32; needs torch and transformers. The
weights are random and go through `lm.save`. The time of decoding is that of long answers less that of
answers of one token, so without the prompt.

One core of an Intel Xeon (AVX-512) that shared memory with much other work, CPU s, median of n=2 interleaved
samples, all 30 layers, 9 tokens, a step of one row of 32 tokens; torch 2.13 with MKL, jax 0.10.2, no huge
pages. On the right what changed since, 10 layers, n=4, huge pages for both, nine processes on two cores; with
more beside them the steps took 0.552 and 0.386 (n=3), so that ratio is worth little:

    work                proxlm  transformers  ratio  first call     proxlm  transformers  ratio
    prefill 128         0.403   0.417         1.03   2.0            0.139   0.128         0.92
    prefill 1024        4.456   2.907         0.65   6.2            1.106   0.927         0.84
    decode 1, a token   0.083   0.096         1.16   4.2
    decode 32, a token  0.210   0.232         1.10   6.5
    step                1.553   1.062         0.68   6.7            0.610   0.664         1.09

Decoding one row reads 538 MB a token; the core alone reads 12 to 14 GB a second, so 0.04 s is the least.
Of a prefill of 128 products are 88 %, copies of the scanned layers' weights 11 (smallest of two calls of each
operation). Alone, products of [128, 576] x [576, 3072] reach 94 to 124 GFLOP a second by MKL, 96 to 118 by
Eigen, 76 to 100 by YNNPACK, which XLA takes (median and best of 12), and
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= leaves them to Eigen: so 1.5 times the speed of
transformers is out of reach, whose time is that of its products, too. A step on few tokens is bound by
memory: of 0.43 s for 10 layers AdamW and the gradient's norm take 0.14, the forward pass 0.09.

In a quiet hour 10 layers took, n=3, transformers over ours: prefill 0.94 and 0.89, decode 1.02, step 0.65;
with products left to Eigen 1.00, 0.83, 0.96 and 0.36, a step of 1.03 in place of 0.63 CPU s.

Now, 10 layers, the core to itself and one process on the other, median of n=3, CPU s here and by
transformers: prefill of 128 0.135 and 0.120 (0.89), of 1,024 1.09 and 0.90 (0.83), a token 0.026 and 0.031
(1.21), of 32 rows 0.076 and 0.079 (1.04), a step of 2 x 256 2.82 and 2.73 (0.97); first calls 1.5 to 6.7.

What changed, with 4 to 9 processes on two cores, so that the best of n is given. A step of 2 x 256, CPU s:
3.65 before, 2.55 now, transformers 2.63 (n=3; the medians 3.98, 3.32, 2.66): six chunks of the head were
products with too few rows, and each added to a gradient of 113 MB. Attention to 1,024 tokens alone: 0.037
before, 0.020 a layer now, PyTorch's 0.016 (n=7); but the whole prefill 1.15 and 1.12 (n=5), and 0.99 beside
transformers' 0.86 (n=6). A token for one row: 0.034 before (n=7), 0.025 now, transformers 0.034 (n=3).
Weights kept in bfloat16 (--dtype) give the same tokens and log-probabilities, bit for bit, but no certain
gain: 0.018 a token beside 0.028 over 48 tokens (n=5), 0.027 beside 0.025 over 16 (n=3), for 32 rows the
same. Their prefill is slower: XLA slices bfloat16 in float32 and widens all layers before the loop. The
option xla_cpu_experimental_ynn_fusion_type="" may be given to one function, as one of jax.jit's
compiler_options: prefill of 128 takes 0.099 with it and 0.113 without, of 1,024 the same (n=6), the step
2.76 in place of 2.55.

Tried, without a gain on the whole: kernels of scanned layers by blocks of columns in place of a copy (that
product alone 20 % faster on 128 tokens, 6 % slower on 1,024); unrolled layers (the gradient at most a tenth
faster, at twice the compilation). Of the policies of remat this one is the fastest on 32 tokens.
"""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.benchmarks import clock
from experiments.support.run import tables
from proxlm import lm, losses, training

LEARNING_RATE = 1e-5


@dataclasses.dataclass(frozen=True)
class Config:
    num_layers: int = 30
    prefill: tuple[int, ...] = (128, 1024)  # tokens of one prompt
    decode: tuple[int, ...] = (1, 32)  # rows, each after a prompt of 16 tokens
    num_tokens: int = 17
    step: tuple[int, int] = (2, 256)  # rows and tokens of a training step
    dtype: str = "float32"  # of the file's weights, and of ours but in the step; products are in float32
    clock: str = "cpu"
    repeats: int = 5

    @property
    def model(self) -> lm.ModelConfig:
        sizes = {"num_heads": 9, "num_kv_heads": 3, "hidden_width": 1536, "max_length": 8192}
        options = {"rope_theta": 1e5, "remat": "dots_with_no_batch_dims_saveable"}
        return lm.ModelConfig(49152, num_layers=self.num_layers, width=576, **sizes, **options)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 49152, shape, dtype=np.int32)


def ours(params: lm.Params, trained: lm.Params, config: Config):
    """Functions of no arguments by the name of their work."""
    model, calls = config.model, {}
    greedy = lm.SamplingConfig(greedy=True)
    sample = jax.jit(functools.partial(lm.sample, sampling=greedy), static_argnums=(3, 4))
    block = lambda fn, *args: lambda: jax.block_until_ready(fn(*args))
    for length in config.prefill:
        calls[f"prefill {length}"] = block(sample, jax.random.key(0), params, tokens(1, length), model, 1)
    for rows in config.decode:
        for length in (1, config.num_tokens):
            given = jax.random.key(0), params, tokens(rows, 16), model, length
            calls[f"decode {rows} x {length}"] = block(sample, *given)
    optimizer = optax.adamw(LEARNING_RATE)

    def loss(params, batch):
        hidden = lm.encode(params, batch[:, :-1], model)
        return jnp.mean(lm.map_logits(losses.next_token, params, hidden, model, batch[:, 1:].reshape(-1)))

    step = jax.jit(training.make_step(loss, optimizer), donate_argnums=0)
    state = training.init(jax.tree.map(jnp.copy, trained), optimizer)
    batch = tokens(config.step[0], config.step[1] + 1)

    def train():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics.loss)

    calls["step"] = train
    return calls


def theirs(folder: pathlib.Path, config: Config):
    """The same by transformers."""
    import torch
    import transformers

    from experiments.benchmarks import torch_peer

    torch_peer.prepare()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tensor = lambda *shape: torch.as_tensor(tokens(*shape), dtype=torch.long)

    def prefill(row):
        with torch.inference_mode():
            return model(row, use_cache=True, logits_to_keep=1).logits.numpy()

    def decode(rows, length):
        how = {"do_sample": False, "min_new_tokens": length, "max_new_tokens": length}
        with torch.inference_mode():
            return model.generate(rows, attention_mask=torch.ones_like(rows), pad_token_id=0, **how).numpy()

    calls = {f"prefill {n}": functools.partial(prefill, tensor(1, n)) for n in config.prefill}
    for rows in config.decode:
        for length in (1, config.num_tokens):
            calls[f"decode {rows} x {length}"] = functools.partial(decode, tensor(rows, 16), length)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-4, fused=True)
    batch = tensor(config.step[0], config.step[1] + 1)

    def train():
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return calls | {"step": train}


def main(config: Config = Config()) -> None:
    """Prints the table."""
    if config.clock == "cpu":
        clock.pin()
    settings = clock.Settings(config.clock, config.repeats, seconds=0.0)
    print(clock.hardware(settings))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "model"
        model = lm.Pretrained(lm.init(jax.random.key(0), config.model), config.model, None, ())
        lm.save(folder, model, dtype=config.dtype)
        peer = theirs(folder, config)
        params, trained = (lm.load(folder, param_dtype=kind).params for kind in (config.dtype, "float32"))
    mine, rows = ours(params, trained, config), []
    seconds = {}
    for name in mine:
        timings = clock.measure({"proxlm": mine[name], "transformers": peer[name]}, settings)
        seconds[name] = [timings[by].median for by in ("proxlm", "transformers")]
        rows.append([name, *seconds[name], seconds[name][1] / seconds[name][0], timings["proxlm"].first])
    for n in config.decode:
        long, short = seconds[f"decode {n} x {config.num_tokens}"], seconds[f"decode {n} x 1"]
        each = [(a - b) / (config.num_tokens - 1) for a, b in zip(long, short, strict=True)]
        rows.append([f"decode {n}, a token", *each, each[1] / each[0], None])
    rows = [[row[0], *(None if x is None else round(x, 3) for x in row[1:])] for row in rows]
    headers = ["work", "proxlm, s", "transformers, s", "ratio", "proxlm, first call"]
    print(tables.table(rows, headers))
    print(f"median of n={config.repeats} interleaved samples")


if __name__ == "__main__":
    main(tyro.cli(Config))
