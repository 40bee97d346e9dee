"""A user's program in which a type checker reports every line that ends in `# wrong`."""

import optax

import proxlm
from proxlm import lm, penalties
from proxlm.policy import ppo


def wrong() -> None:
    proxlm.penalty.l1(0.1)  # wrong
    penalties.l1(strenght=0.1)  # wrong
    penalties.l1("0.1")  # wrong
    penalties.l1(0.1).prox(step=0.1)  # wrong
    optax.chain(proxlm.apply_prox(penalties.l1, 0.1))  # wrong
    proxlm.proximal_adam(penalties.l1(0.1), 1e-3)  # wrong
    lm.ModelConfig(vocab_size="8")  # wrong
    lm.SamplingConfig(temprature=0.7)  # wrong
    ppo.PPOConfig(num_epochs="4")  # wrong
    lm.make_actor(lm.ModelConfig(vocab_size=8), num_tokens="4")  # wrong
