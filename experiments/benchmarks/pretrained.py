"""A model of SmolLM2-135M's shape, by proxlm and by transformers with PyTorch, from the same weights.

    python -m experiments.benchmarks.pretrained                      # one pinned core, processor time
    python -m experiments.benchmarks.pretrained --num-layers 2       # a first look

Prefill, greedy decoding against a cache, and an AdamW step; float32; needs torch and transformers. The
weights are random and go through `lm.save`. The time of decoding is that of long answers less that of
answers of one token, so without the prompt. --dtype is how the weights are kept; our products are in float32
either way and give the same tokens and log-probabilities, bit for bit. --peer-dtype is that of transformers'
weights and products: float32, or bfloat16, which is what transformers 5 takes for the files of SmolLM2.

One core of an Intel Xeon (AVX-512), torch 2.13 with MKL, jax 0.10.2, huge pages for both, 10 layers, CPU s,
in brackets the ratio to ours. With other work on the machine (load 5.5 to 9), all four in one process,
median of n=3:

    work                ours bfloat16   ours float32    transformers float32   transformers bfloat16
    prefill 128         0.152           0.150           0.143 (0.94)           0.183 (1.20)
    prefill 1024        1.103           1.207           0.893 (0.81)           1.330 (1.21)
    decode 1, a token   0.021           0.025           0.035 (1.64)           0.037 (1.74)
    decode 32, a token  0.062           0.094           0.093 (1.50)           0.096 (1.54)
    the same, best of 3 0.062           0.076           0.076 (1.21)           0.088 (1.41)
    later, n=5          0.084           0.087           0.092 (1.10)           0.102 (1.22)
    the same, best of 5 0.073           0.082           0.087 (1.20)           0.093 (1.28)

In float32 on both sides in a quiet hour, median of n=3: prefill of 128 0.135 and 0.120 (0.89), of 1,024 1.09
and 0.90 (0.83), a token 0.026 and 0.031 (1.21), of 32 rows 0.076 and 0.079 (1.04), a step of 2 x 256 2.82
and 2.73 (0.97); first calls 1.5 to 6.7. Of all 30 layers, n=2: a token 0.083 and 0.096, of 32 rows 0.210 and
0.232.

Why not more. Products of 128 tokens with [576, 1536], [576, 3072] and [1536, 576], GFLOP a second, median of
n=7: MKL 97, 99, 104; YNNPACK, which XLA takes, 101, 79, 95; Eigen 120, 100, 132; in bfloat16 torch 69 to 73,
YNNPACK 67 to 83, Eigen 80 to 97 (this processor has instructions for bfloat16, and nobody is faster with
them). Of 1,024 tokens: MKL 127 to 131, YNNPACK 93 to 107, Eigen 114 to 125, torch in bfloat16 75 to 79.
Transformers' whole prefill runs at 76 and 94, so that 1.5 times its speed in float32, 114 and 140, is more
than its products alone. compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""} of jax.jit leaves
products to Eigen: prefill of 128 0.123 in place of 0.150, of 1,024 1.09 in place of 1.12, decoding of 32
rows 1.97 in place of 1.45 over 16 tokens, whose head it multiplies at 31 in place of 68, a step 2.76 in
place of 2.55 (n=5; 6 for the step). Decoding one row reads 538 MB a token, or half, and the core alone 12 to
14 GB a second. Of 32 rows the head takes 28 ms and wide kernels 2 ms each, 1.7 by columns in place of rows,
which is done from 8 rows on.

A step on few tokens is bound by memory: of 0.43 s for 10 layers AdamW and the gradient's norm take 0.14, the
forward pass 0.09. A step of 2 x 256 took 3.65 before the head was no longer cut in six chunks; one of
6 layers 2.22 (2.82) before attention by blocks of queries (`training`), 2.11 (2.33) since, best and median of
4, by turns.

Tried, without a gain on the whole: kernels of scanned layers by blocks of columns in place of a copy (that
product alone 20 % faster on 128 tokens, 6 % slower on 1,024); queries, keys and values, and gate and up, as
products of their own for 128 and 256 tokens; unrolled layers (the gradient at most a tenth
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
    peer_dtype: str = "float32"  # of transformers' weights and products; by itself it takes the file's
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
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=config.peer_dtype).eval()
    tensor = lambda *shape: torch.as_tensor(tokens(*shape), dtype=torch.long)

    def prefill(row):
        with torch.inference_mode():
            return model(row, use_cache=True, logits_to_keep=1).logits.float().numpy()

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
