"""An invalid argument is refused by a ValueError that names it and says what is expected or what to do."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from proxlm import checkpoint, lm, penalties, policy, transforms

ENTRIES = pathlib.Path(__file__).with_name("bad_calls.txt")
SHARE = 0.95
REMEDY = re.compile(
    r"\b(must|expected|should|needs?|give|given|pass|use|write|choose|make|leave|set|build|call|put|take|"
    r"there (is|are)|known|allowed|one of|instead|keep|restore|start|name the)\b",
    re.IGNORECASE,
)
MODULES = {
    "penalties": "proxlm.penalties",
    "grouping": "proxlm.penalties.grouping",
    "transforms": "proxlm.transforms",
    "solvers": "proxlm.solvers",
    "lm": "proxlm.lm",
    "losses": "proxlm.losses",
    "training": "proxlm.training",
    "checkpoint": "proxlm.checkpoint",
    "settings": "proxlm.settings",
    "policy_losses": "proxlm.policy.losses",
}
POLICY = """
    KL PPOConfig Value Whitening
    advantages aggregation best_of_n diagnostics filters importance_weights kl mirror_descent ppo recipes
""".split()


def names(folder):
    """Returns what the expressions may name; `saved` holds a checkpoint and `folder` none."""
    model = lm.ModelConfig(vocab_size=8, num_layers=2, width=16, num_heads=2, max_length=16)
    one_layer = lm.ModelConfig(vocab_size=8, num_layers=1, width=16, num_heads=2, max_length=16)
    with_values = lm.ModelConfig(vocab_size=8, num_layers=1, width=16, num_heads=2, value_head=True)
    key = jax.random.key(0)
    checkpoint.save(folder / "saved", 1, jnp.ones(3), {})
    return {
        **{name: importlib.import_module(module) for name, module in MODULES.items() if name != "grouping"},
        **{name: getattr(policy, name) for name in POLICY},
        "grouping": penalties.grouping,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "proxlm": importlib.import_module("proxlm"),
        "ADAM": transforms.adam_preconditioner(),
        "B1": jnp.ones((2, 4)),
        "C": model,
        "M4": jnp.ones(4, bool),
        "MASK": jnp.ones((2, 4), bool),
        "ONE_LAYER": lm.init(key, one_layer),
        "P": lm.init(key, model),
        "R4": jnp.ones(4),
        "V": with_values,
        "WIDER": lm.ModelConfig(vocab_size=8, num_layers=2, width=32, num_heads=2, max_length=16),
        "actor": lm.make_actor(with_values, 4),
        "async_reward": async_reward,
        "batch_of": lambda step: jnp.ones(3),
        "fit_loss": lambda params, batch: jnp.sum(params * batch),
        "folder": folder / "empty",
        "key": key,
        "l1": penalties.l1(0.1),
        "nan": float("nan"),
        "prompts": lambda key: lm.Prompts(jnp.zeros((4, 2), int)),
        "reward": lambda samples: jnp.ones(samples.tokens.shape[0]),
        "saved": folder / "saved",
        "square": lambda x: jnp.sum(x**2),
        "tokens": jnp.zeros((1, 4), int),
    }


async def async_reward(samples):
    return jnp.ones(samples.tokens.shape[0])


def fault(argument, expression, known):
    """Returns what is wrong with the refusal of a call, or None."""
    try:
        eval(expression, dict(known))
    except ValueError as error:
        message = str(error)
        if not re.search(rf"\b{argument}\b", message):
            return f"does not name {argument}: {message}"
        return None if REMEDY.search(message) else f"no remedy: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def faults(folder, section=""):
    """Returns the number of calls and a line for each that is not refused as it should be."""
    known = names(folder)
    text = ENTRIES.read_text()
    text = text[text.index(section) :]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    entries = [line.split(" | ", maxsplit=1) for line in lines]
    found = [(argument, call, fault(argument, call, known)) for argument, call in entries]
    return len(entries), [f"{argument} | {call}\n    {it[:170]}" for argument, call, it in found if it]


@pytest.mark.slow
def test_bad_calls_name_the_argument_and_the_remedy(tmp_path):
    total, found = faults(tmp_path)
    assert len(found) <= (1 - SHARE) * total, f"{len(found)} of {total}:\n" + "\n".join(found)


def test_kinds_of_arguments_are_checked_and_settings_without_effect_refused(tmp_path):
    total, found = faults(tmp_path, "# kinds of arguments, and settings without effect\n")
    assert total > 30 and not found, "\n".join(found)
