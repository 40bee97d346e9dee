"""vLLM itself opens what was saved, and its models take a patch to the bits of the model saved whole."""

import importlib
import os
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from proxlm import lm

pytestmark = pytest.mark.slow

LOADER = "vllm.model_executor.model_loader"
PATCHES = f"{LOADER}.checkpoint_weight_patch"
MODELS = {
    "llama": lm.ModelConfig(512, num_layers=2, width=128, num_heads=2, num_kv_heads=1, max_length=64),
    "qwen2": lm.ModelConfig(512, num_layers=2, width=128, num_heads=2, qkv_bias=True, max_length=64),
}


@pytest.fixture(scope="module")
def vllm():
    """The package, in a process group of one."""
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
    vllm = pytest.importorskip("vllm")
    torch = pytest.importorskip("torch")
    config, distributed = (importlib.import_module(f"vllm.{name}") for name in ("config", "distributed"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    if not torch.accelerator.is_available():  # its loader ends by emptying a cache that is not there
        torch.accelerator.empty_cache = lambda: None
    with config.set_current_vllm_config(config.VllmConfig()):
        distributed.init_distributed_environment(1, 0, address, 0, "gloo")
        distributed.initialize_model_parallel(1, 1)
    return vllm


def opened(folder):
    """The model of a folder, as vLLM's default loader fills it on a CPU."""
    config, loading = (importlib.import_module(name) for name in ("vllm.config", LOADER))
    model = config.ModelConfig(
        model=str(folder), dtype="bfloat16", enforce_eager=True, skip_tokenizer_init=True
    )
    whole = config.VllmConfig(model_config=model, device_config=config.DeviceConfig("cpu"))
    with config.set_current_vllm_config(whole):
        return loading.get_model_loader(whole.load_config).load_model(vllm_config=whole, model_config=model)


def patches(path, folder):
    """A file of gaps as patches of vLLM; shapes are those of the checkpoint."""
    torch, theirs = importlib.import_module("torch"), importlib.import_module(PATCHES)
    shapes = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    with safe_open(path, "pt") as file:
        for name in sorted(key.removesuffix(".val") for key in file.keys() if key.endswith(".val")):
            values, gaps = file.get_tensor(f"{name}.val"), file.get_tensor(f"{name}.idx").long()
            places = torch.cumsum(gaps + 1, 0) - 1
            yield theirs.CheckpointWeightPatch(name, shapes[name], values.dtype, values, places)


@pytest.mark.parametrize("name", MODELS)
def test_vllm_opens_folders_and_applies_patches(name, vllm, tmp_path):
    config = MODELS[name]
    base = lm.init(jax.random.key(0), config)
    random = np.random.default_rng(0)
    new = jax.tree.map(lambda x: jnp.where(random.random(x.shape) < 0.01, x + 1.0, x), base)
    for folder, params in (("base", base), ("new", new)):
        model = lm.Pretrained(params, config, None, ())
        lm.save(tmp_path / folder, model, dtype="bfloat16", max_shard_size=200_000)
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    lm.delta.save_patch(tmp_path / "patch", base, new, config, dtype="bfloat16")

    theirs, whole = opened(tmp_path / "base"), dict(opened(tmp_path / "new").named_parameters())
    differ = lambda: [k for k, x in theirs.named_parameters() if not bool((x == whole[k]).all())]
    assert len(differ()) > config.num_layers
    load = importlib.import_module(PATCHES).load_checkpoint_weight_patches
    load(theirs, patches(tmp_path / "patch", tmp_path / "base"))
    assert differ() == []
