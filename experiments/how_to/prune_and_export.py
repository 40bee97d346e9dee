"""Hidden units pruned, cut out and exported. `python -m experiments.how_to.prune_and_export FOLDER`"""

import pathlib
import sys

import jax
import jax.numpy as jnp

from proxlm import lm, losses, penalties, training, transforms
from proxlm.penalties import grouping

UNITS = grouping.linked({"gate_up/kernel": (0, 3), "down/kernel": (0, 1)})  # [L, D, 2, F] and [L, F, D]


def main(folder, steps=60):
    """The number of hidden units before and after; FOLDER then has a model and a program."""
    folder = pathlib.Path(folder)
    config = lm.ModelConfig(vocab_size=32, num_layers=2, width=16, num_heads=2)
    tokens = jax.random.randint(jax.random.key(0), (16, 1), 0, 8) + jnp.arange(9)[None]  # each counts up

    def loss(params, _):
        return jnp.mean(losses.next_token(lm.apply(params, tokens[:, :-1], config), tokens[:, 1:]))

    optimizer = transforms.proximal_adam(1e-2, penalties.group_lasso(5e-4, UNITS))
    start = training.init(lm.init(jax.random.key(1), config), optimizer)
    state, _ = jax.lax.scan(training.make_step(loss, optimizer), start, jnp.arange(steps))
    params, small = lm.shrink(state.params, config)
    lm.save(folder / "model", lm.Pretrained(params, small, tokenizer=None, stops=()))
    shape = jax.export.symbolic_shape("rows, length", constraints=["length <= 256", "rows * length >= 1"])
    shape = jax.ShapeDtypeStruct(shape, jnp.int32)
    program = jax.export.export(jax.jit(lambda tokens: lm.apply(params, tokens, small)))(shape)
    (folder / "program.bin").write_bytes(program.serialize())
    return config.hidden_width, small.hidden_width


if __name__ == "__main__":
    print(*main(sys.argv[1]))
