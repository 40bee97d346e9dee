"""Memory, work and bounds of a training run on devices that are not there.

`python -m experiments.plan --model llama-8b --mesh fsdp=8 --chips h100 --microbatches 4`, and the
like: GRPO on 256 answers in groups of 8, rows of 256 + 1024 tokens, all weights trained by Adam in
float32 with a reference, bfloat16 activations, layers rematerialised. GiB on one device, and
seconds of an iteration at least, which take the makers' numbers for products, memory and links, and
nothing else for time:

| model | devices | slices, micro-batches | state | peak | sampling | learning |
| --- | --- | --- | --- | --- | --- | --- |
| SmolLM2-135M | one H200 | 4, 32 | 2.0 | 5.3 | 1.1, memory | 0.9, memory |
| | 8 H100, fsdp=8 | 1, 4 | 0.25 | 2.9 | 0.36, links | 0.17, memory |
| | v5e-64, fsdp=64 | 1, 1 | 0.03 | 1.5 | 1.8, links | 0.09, memory |
| Llama 1B | one H200 | 4, 32 | 18 | 37 | 3.3, memory | 5.1, memory |
| | 8 H100, fsdp=8 | 1, 4 | 2.3 | 15 | 1.8, links | 0.9, memory |
| | v5e-64, fsdp=64 | 1, 1 | 0.3 | 8.9 | 8.8, links | 0.5, memory |
| Llama 8B | one H200 | 4, 32 | 120 | 213: no | 18, memory | 25, products |
| | 8 H100, fsdp=8 | 1, 4 | 15 | 50 | 13, links | 3.1, products |
| | v5e-64, fsdp=64 | 1, 1 | 1.9 | 23: no | 66, links | 2.1, links |
| Llama 70B | one H200 | 4, 32 | 1051 | 1,849: no | 132, memory | 223, products |
| | 8 H100, fsdp=8 | 1, 4 | 131 | 318: no | 115, links | 28, products |
| | v5e-64, fsdp=64 | 1, 1 | 16 | 71: no | 574, links | 19, links |

Under fsdp every token that is sampled gathers the weights of attention, and of the MLP the activations of
all rows, which is what bounds sampling there.
XLA's compiler for CPUs keeps float32 copies of what bfloat16 products read, and does attention by
plain products: an accelerator takes less. For 8B on one H200 such copies, of the weights that scores in
slices cast once, take learning from 72 to 93 GiB beside the state. Beside what a program is given, planned
and measured GiB, the `tiny` model in float32 on one device (2 CPU cores, n=1, an allocator that
gives back what is freed):

| responses | sampling | learning | supervised step |
| --- | --- | --- | --- |
| 128 | 0.048, 0.050 | 0.137, 0.171 | 0.156, 0.158 |
| 512 | 0.191, 0.191 | 0.548, 0.612 | 0.628, 0.632 |
| 1024 | 0.381, 0.385 | 1.095, 1.214 | 1.254, 1.262 |

So a plan is within 15 % from half a GiB on; below, learning misses by up to 20 %, for what is not known.
"""
