"""A small transformer language model: the only room that knows Flax.

`params = lm.init(key, config)`, then `logits = lm.apply(params, tokens, config)`.
"""

from proxlm.lm import pretrained
from proxlm.lm.actor import Actor, Prompts, make_actor
from proxlm.lm.beam import Beams, beam_search
from proxlm.lm.config import ModelConfig
from proxlm.lm.distribution import SamplingConfig
from proxlm.lm.forward import apply, encode, logits, states, values
from proxlm.lm.inspection import Inspection, inspect, lens
from proxlm.lm.model import Transformer, count, init, stack, unstack
from proxlm.lm.sampling import Samples, sample
from proxlm.lm.scoring import Scores, score
from proxlm.lm.shrinking import Used, shrink, used
from proxlm.lm.streaming import stream

__all__ = [
    "Actor",
    "Beams",
    "Inspection",
    "ModelConfig",
    "Prompts",
    "Samples",
    "SamplingConfig",
    "Scores",
    "Transformer",
    "Used",
    "apply",
    "beam_search",
    "count",
    "encode",
    "init",
    "inspect",
    "lens",
    "logits",
    "make_actor",
    "pretrained",
    "sample",
    "score",
    "shrink",
    "stack",
    "states",
    "stream",
    "unstack",
    "used",
    "values",
]
