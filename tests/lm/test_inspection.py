"""An inspected forward pass shows what the model computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from tests import arrays

CONFIG = lm.ModelConfig(vocab_size=19, num_layers=2, width=16, num_heads=4, num_kv_heads=2, max_length=12)
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
PARAMS = arrays.rough(CONFIG, scale=0.35)
MASK = jnp.arange(7)[None] >= jnp.array([[0], [3]])

inspect = jax.jit(functools.partial(lm.inspect, config=CONFIG))
logit_lens = jax.jit(functools.partial(lm.logit_lens, config=CONFIG))
apply = jax.jit(functools.partial(lm.apply, config=CONFIG))


@pytest.fixture(scope="module")
def seen():
    return inspect(PARAMS, TOKENS, mask=MASK)


def test_every_query_spends_its_whole_attention_on_what_it_may_see(seen):
    assert seen.attention.shape == (2, 2, 4, 7, 7)
    np.testing.assert_allclose(seen.attention.sum(axis=-1), 1.0, atol=1e-6)
    assert not jnp.triu(seen.attention, 1).any(where=MASK[None, :, None, :, None])
    assert not seen.attention[:, 1, :, 3:, :3].any()  # the padding of the second row
    assert (jnp.tril(seen.attention[:, 0]) > 0).sum() == 2 * 4 * 28


def test_the_lens_at_the_last_layer_gives_the_logits_of_the_model(seen):
    logits = logit_lens(PARAMS, seen.residual)
    assert logits.shape == (3, 2, 7, 19)
    np.testing.assert_allclose(logits[-1], apply(PARAMS, TOKENS, mask=MASK), rtol=1e-5, atol=1e-5)
    assert jnp.abs(logits[0] - logits[-1]).max() > 0.1


def test_the_residual_stream_starts_at_the_embedding(seen):
    assert seen.residual.shape == (3, 2, 7, 16)
    embedding = PARAMS["embedding"]["kernel"][TOKENS]
    np.testing.assert_array_equal(seen.residual[0][MASK], embedding[MASK])


def test_a_layer_adds_its_attention_over_the_values_and_then_its_mlp(seen):
    """The weights that are shown, put back by hand, give the next residual."""
    block = lm.unstack(PARAMS["blocks"])[0]
    root = lambda x: x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + CONFIG.norm_epsilon)
    x = seen.residual[0]
    normed = root(x) * block["attention_norm"]["scale"][None, None]
    value = jnp.einsum("btd,dgw->bgtw", normed, block["attention"]["qkv"]["kernel"][:, 6:])
    mixed = jnp.einsum("bhts,bhsw->bthw", seen.attention[0], jnp.repeat(value, 2, axis=1))
    x = x + jnp.einsum("bthw,hwd->btd", mixed, block["attention"]["out"]["kernel"])
    normed = root(x) * block["mlp_norm"]["scale"][None, None]
    gate, up = jnp.moveaxis(jnp.einsum("btd,dpf->btpf", normed, block["mlp"]["gate_up"]["kernel"]), 2, 0)
    x = x + jax.nn.silu(gate) * up @ block["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(x, seen.residual[1], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(ValueError, match=r"13 tokens do not fit the context of max_length=12"):
        lm.inspect(PARAMS, jnp.zeros((1, 13), int), CONFIG)
    with pytest.raises(ValueError, match=r"residual\.shape must be \[..., 16\], .* got \(2, 8\)"):
        lm.logit_lens(PARAMS, jnp.zeros((2, 8)), CONFIG)
