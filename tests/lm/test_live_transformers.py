"""Beside transformers itself, where it is installed: logits with and without cache, and folders both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.lm import _cache, _forward, _places
from tests.lm import peer_models, test_gguf

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
PROMPT = 14
LENGTHS = {"llama, dynamic": 32}  # its longest; the others' are beyond what rotations are scaled from, too


@jax.jit(static_argnames="config")
def logits_by_steps(params, tokens, mask, *, config):
    """The logits from the last token of a prompt on, one token after the other."""
    hidden, cache = _cache.prefill(params, tokens[:, :PROMPT], mask[:, :PROMPT], config)
    length = tokens.shape[1]
    places = _places.places(mask[:, :PROMPT], PROMPT, length - PROMPT, config)
    valid = _places.valid_columns(mask[:, :PROMPT], PROMPT, length)

    def step(cache, i):
        column = PROMPT + i
        hidden, cache = _cache.decode(
            params, tokens[:, column], cache, column, _places.at_step(places, i), valid, config
        )
        return cache, _forward.logits(params, hidden, config)

    _, later = jax.lax.scan(step, _cache.grow(cache, length), jnp.arange(length - PROMPT))
    return jnp.concatenate([_forward.logits(params, hidden, config)[None], later]).swapaxes(0, 1)


@pytest.mark.parametrize("case", peer_models.CASES)
def test_everything_is_as_in_transformers(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    torch.set_num_threads(1)
    reference = peer_models.build(case)
    tokens, mask = peer_models.inputs(LENGTHS.get(case, 50))
    # first, as the dynamic scaling of RoPE remembers in transformers the longest row it has seen
    steps = peer_models.logits_by_steps(reference, tokens, mask, PROMPT)
    whole = peer_models.logits(reference, tokens, mask)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    model = lm.load(tmp_path / "theirs")
    own = jax.jit(lm.apply, static_argnames="config")(model.params, tokens, config=model.config, mask=mask)
    np.testing.assert_allclose(own[mask], whole[mask], atol=1e-4 * np.abs(whole[mask]).max())
    found = logits_by_steps(model.params, tokens, mask, config=model.config)
    np.testing.assert_allclose(found, steps, atol=1e-4 * np.abs(steps).max())

    lm.save(tmp_path / "ours", model, max_shard_size=20_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype="auto"
    )
    assert type(again) is type(reference)
    theirs, ours = reference.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    found = peer_models.logits(again.eval(), tokens, mask)
    np.testing.assert_allclose(found[mask], whole[mask], atol=1e-6 * np.abs(whole[mask]).max())
    back = lm.load(tmp_path / "ours")
    assert back.config == model.config
    assert jax.tree.all(jax.tree.map(np.array_equal, back.params, model.params))


# Of a file's metadata transformers 5 reads less than we do (no scaling of RoPE, no bias, no width of Qwen 3's
# heads, no Gemma 1), so weights are compared, their order and offsets.
@pytest.mark.parametrize("case", ["llama ", "llama 3", "qwen2", "gemma2", "gemma3"])
def test_weights_of_gguf_files_are_those_that_transformers_reads(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    test_gguf.write_family(tmp_path / "a.gguf", case)
    model = lm.load(tmp_path / "a.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype="float32")
    ours = lm.pretrained.to_tensors(model.params, model.config)
    found = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert found.keys() - {"lm_head.weight"} <= ours.keys() <= found.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, found[name], atol=1e-6, err_msg=name)
