"""Arguments of verl and TRL in proxlm's words, read off the compositions that test_peer_losses.py proves.

    python -m tests.policy.peer_arguments

prints the table in Markdown. An argument is mapped to a case of `peer_losses`; the rest is derived from it.
"""

import functools

from tests.policy import peer_losses

# (peer, argument): the case whose losses and gradients are the peer's
ARGUMENTS = {
    ("verl 0.9.1", f'loss_agg_mode="{mode}"'): f"vanilla {mode}"
    for mode in ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
}
ARGUMENTS |= {
    ("verl 0.9.1", "clip_ratio_high, clip_ratio_c"): "vanilla dual",
    ("verl 0.9.1", "batch_num_tokens"): "vanilla global tokens",
    ("verl 0.9.1", "global_batch_size"): "vanilla global rows",
    ("verl 0.9.1", "loss_scale_factor"): "vanilla norm",
    ("verl 0.9.1", 'rollout_is="token"'): "vanilla weights",
    ("verl 0.9.1", 'rollout_is="sequence", rollout_is_batch_normalize'): "bypass reinforce sequence",
    ("verl 0.9.1", "rollout_is by IcePop"): "bypass reinforce icepop",
}
ARGUMENTS |= {
    ("verl 0.9.1", f'loss_mode="{mode}"'): mode
    for mode in "gspo sapo geo_mean gpg dro cispo kl_cov clip_cov dppo_tv dppo_kl".split()
}
ARGUMENTS |= {
    ("verl 0.9.1", f'kl_loss_type="{kind}"'): f"kl {kind}" for kind in ("k1", "k2", "k3", "abs", "k1+", "k3+")
}
ARGUMENTS |= {
    ("TRL 1.16", f'loss_type="{kind}"'): f"{kind} token"
    for kind in ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
}
ARGUMENTS |= {
    ("TRL 1.16", 'importance_sampling_level="sequence"'): "grpo sequence",
    ("TRL 1.16", "epsilon_high, delta"): "delta",
    ("TRL 1.16", 'vllm_importance_sampling_mode="token_truncate"'): "is token_truncate",
    ("TRL 1.16", 'vllm_importance_sampling_mode="token_mask"'): "is token_mask",
    ("TRL 1.16", 'vllm_importance_sampling_mode="sequence_truncate"'): "is sequence_truncate",
    ("TRL 1.16", 'vllm_importance_sampling_mode="sequence_mask"'): "is sequence_mask",
    ("TRL 1.16", "RLOOTrainer"): "rloo",
}


def call(fn):
    """A function with its settings as one would write it, `losses.clipped(clip_high=0.28)`."""
    if not isinstance(fn, functools.partial):
        if fn.__qualname__.startswith("straight_through."):
            return f"kl.straight_through({call(fn.__closure__[0].cell_contents)})"
        return f"{fn.__module__.removeprefix('proxlm.policy.').split('.')[0]}.{fn.__name__}"
    if fn.func is peer_losses.of_estimate:
        return call(fn.keywords["estimate"])
    settings = (f"{k}={call(x) if callable(x) else repr(x)}" for k, x in fn.keywords.items())
    return f"{call(fn.func)}({', '.join(settings)})"


def composition(case):
    """The loss per token, its factor and its weights."""
    factor = "" if case.factor is None else f" · {call(case.factor.correction)}"
    return f"`{call(case.loss)}`{factor and f' times `{factor[3:]}`'}, weighed by `{call(case.weights)}`"


def table():
    """The lines of the table."""
    cases = peer_losses.VERL | peer_losses.TRL
    lines = ["| peer | argument | proxlm.policy |", "| --- | --- | --- |"]
    rows = ARGUMENTS.items()
    return lines + [f"| {peer} | `{text}` | {composition(cases[name])} |" for (peer, text), name in rows]


if __name__ == "__main__":
    print("\n".join(table()))
