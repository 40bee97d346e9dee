"""Small adapters, and the logits of the models that PEFT makes of them.

python -m tests.lm.peft_peer        writes them to vectors/adapters.json
"""

import json
import pathlib
import tempfile

import jax
import numpy as np

from proxlm import lm
from proxlm.lm import lora, trainable
from tests.arrays import normal, rough

CONFIG = lm.ModelConfig(11, num_layers=2, width=8, num_heads=4, num_kv_heads=2, hidden_width=6, unroll=1)
TOKENS = np.random.default_rng(0).integers(11, size=(2, 6))
VECTORS = pathlib.Path(__file__).parent / "vectors" / "adapters.json"


def adapted(dora, config=CONFIG):
    """Parameters whose factors all differ from zero, with two ranks."""
    params = lora.init(
        jax.random.key(2), rough(config, 0.3), {"query|value": 3, "out|mlp": 2}, alpha=3.0, dora=dora
    )
    trained, frozen = lora.split(params)
    draw = lambda path, leaf: leaf + 0.3 * normal(len(jax.tree_util.keystr(path)), leaf.shape)
    return trainable.merge(jax.tree_util.tree_map_with_path(draw, trained), frozen)


def peer_logits(base, adapter):
    """The logits of PEFT's model of two folders."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter)(torch.from_numpy(TOKENS)).logits.numpy()


def saved(folder, dora):
    """Base and adapter, as folders."""
    lm.save(folder / "base", lm.Pretrained(rough(CONFIG, 0.3), CONFIG, None, ()))
    lora.save(folder / "adapter", adapted(dora), CONFIG, "base")
    return folder / "base", folder / "adapter"


def main():
    found = {}
    for dora in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            logits = peer_logits(*saved(pathlib.Path(folder), dora))
        found["dora" if dora else "lora"] = np.round(logits.astype(float), 6).tolist()
    VECTORS.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
