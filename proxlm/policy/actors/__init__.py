"""Actors of any model: what samples and scores, made of a function that gives logits; and its laws.

    actor = policy.actor_from_logits(lambda params, tokens, mask: model(params, tokens), num_tokens=16)
    policy.check_actor(actor, params, prompts)

`params` may be any pytree: an NNX state, linen's variables, the arrays of an Equinox module, a dict.

- `actor_from_logits`
- `check_actor`, `ActorReport`: the laws of an actor, tried on its own samples
- `stop_at`: responses that end at a string
- `samples_of_rows`: the samples of another sampler, such as an inference engine
"""

from proxlm.policy.actors._from_logits import actor_from_logits
from proxlm.policy.actors._laws import ActorReport, check_actor
from proxlm.policy.actors._rows import samples_of_rows
from proxlm.policy.actors._stop_strings import stop_at

__all__ = ["ActorReport", "actor_from_logits", "check_actor", "samples_of_rows", "stop_at"]
