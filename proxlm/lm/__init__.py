"""A small transformer language model: the only room that knows Flax.

`params = lm.init(key, config)`, then `logits = lm.apply(params, tokens, config)`.
"""

from proxlm.lm import pretrained
from proxlm.lm._actor import Actor, Prompts, make_actor
from proxlm.lm._beam import Beams, beam_search
from proxlm.lm._config import ModelConfig
from proxlm.lm._distribution import SamplingConfig
from proxlm.lm._forward import apply, encode, hidden_states, logits, values
from proxlm.lm._inspection import Inspection, inspect, logit_lens
from proxlm.lm._model import Transformer, init, num_params, stack, unstack
from proxlm.lm._sampling import Samples, sample
from proxlm.lm._scoring import Scores, score
from proxlm.lm._shrinking import LiveUnits, live_units, shrink
from proxlm.lm._streaming import stream

__all__ = [
    "Actor",
    "Beams",
    "Inspection",
    "LiveUnits",
    "ModelConfig",
    "Prompts",
    "Samples",
    "SamplingConfig",
    "Scores",
    "Transformer",
    "apply",
    "beam_search",
    "encode",
    "hidden_states",
    "init",
    "inspect",
    "live_units",
    "logit_lens",
    "logits",
    "make_actor",
    "num_params",
    "pretrained",
    "sample",
    "score",
    "shrink",
    "stack",
    "stream",
    "unstack",
    "values",
]
