"""A small transformer language model in Flax: parameters, sampling, scoring, pretrained weights.

- `ModelConfig`, `RopeScaling`, `init`, `num_params`, `Transformer`: shape and `Params` of a model
- `apply`, `encode`, `logits`, `values`, `hidden_states`: the forward pass and its parts
- `map_logits`: losses of the logits of many tokens, a chunk at a time
- `sample`, `stream`, `beam_search`: continuations, by `SamplingConfig`; `Samples`, `Beams`
- `start_rollout`, `continue_rollout`: several turns with a tool between them; `Rollout`, `Turns`, `text_tool`
- `score`: log-probabilities, entropies and values of given tokens; `Scores`, `Against`
- `make_actor`: policy and critic as policy optimisation takes them; `Actor`, `Prompts`
- `inspect`, `logit_lens`: attention, and predictions of each layer; `Inspection`
- `live_units`, `shrink`: smaller models from exact zeros; `LiveUnits`
- `stack`, `unstack`: layers as one array a leaf, or as a list
- `load`, `save`: models that people have, from folders and GGUF files; `Pretrained`, `ChatTemplate`
- `pretrained`: tensors of files of other libraries
- `trainable`, `lora`: training of some layers or parts, and of low-rank factors
- `delta`: fine-tuned weights as a small exact file of what changed

`params = lm.init(key, config)`, then `logits = lm.apply(params, tokens, config)`. A key is the first
argument, as in `jax.random`; steps that `lax.scan` repeats take their state before it. Everywhere `params`
are those of `init` or `pretrained`, and `config` is the `ModelConfig` they were made with.
"""

from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Actor, Against, Prompts, Samples, Scores, Turns
from proxlm._decoding.turns import text_tool
from proxlm.lm import delta, lora, pretrained, trainable
from proxlm.lm._actor import make_actor
from proxlm.lm._beam import Beams, beam_search
from proxlm.lm._chat import ChatTemplate
from proxlm.lm._chunks import map_logits
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._forward import apply, encode, hidden_states, logits, values
from proxlm.lm._inspection import Inspection, inspect, logit_lens
from proxlm.lm._loading import Pretrained, load, save
from proxlm.lm._model import Transformer, init, num_params, stack, unstack
from proxlm.lm._rollout import Rollout, continue_rollout, start_rollout
from proxlm.lm._rope_scaling import RopeScaling
from proxlm.lm._sampling import sample
from proxlm.lm._scoring import score
from proxlm.lm._shrinking import LiveUnits, live_units, shrink
from proxlm.lm._streaming import stream

__all__ = [
    "Actor",
    "Against",
    "Beams",
    "ChatTemplate",
    "Inspection",
    "LiveUnits",
    "ModelConfig",
    "Params",
    "Pretrained",
    "Prompts",
    "Rollout",
    "RopeScaling",
    "Samples",
    "SamplingConfig",
    "Scores",
    "Transformer",
    "Turns",
    "apply",
    "beam_search",
    "continue_rollout",
    "delta",
    "encode",
    "hidden_states",
    "init",
    "inspect",
    "live_units",
    "load",
    "logit_lens",
    "logits",
    "lora",
    "make_actor",
    "map_logits",
    "num_params",
    "pretrained",
    "sample",
    "save",
    "score",
    "shrink",
    "stack",
    "start_rollout",
    "stream",
    "text_tool",
    "trainable",
    "unstack",
    "values",
]
