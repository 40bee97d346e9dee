"""Losses and gradients of verl 0.9.1 and TRL 1.16.0, each composed of our pieces, in float64."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import policy
from tests.policy import peer_arguments, peer_losses, vectors_on_disk
from tests.policy.table_actor import compiled

PEERS = {"verl": peer_losses.VERL, "trl": peer_losses.TRL}
QUICK = (
    "vanilla seq-mean-token-mean",
    "vanilla weights",
    "gspo",
    "geo_mean",
    "dro",
    "dppo_kl",
    "bypass clip rejected",
    "value token-mean",
    "kl k3+",
    "luspo sequence",
    "sapo token",
    "vespo token kl",
    "delta",
    "bias corrected kl sequence",
    "top entropy",
    "rloo",
)


def given(arrays, far):
    """The inputs; far: with tokens and whole sequences whose log-ratios are 13 and 26 nats."""
    g = types.SimpleNamespace(**arrays)
    g.log_probs = jnp.where(far, g.far_log_probs, g.log_probs)
    g.old = jnp.where(far, g.far_old, g.old)
    g.mask, g.scores = g.mask > 0, jnp.broadcast_to(g.scores[:, None], g.mask.shape)
    return g


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("peer", PEERS)
def test_losses_and_gradients_are_theirs(peer, quick):
    vectors = vectors_on_disk.load("peer_losses")
    theirs = vectors[peer]["cases"]
    assert set(theirs) == set(PEERS[peer])
    names = [name for name in theirs if name in QUICK or not quick]

    @compiled
    def ours(arrays):
        both = lambda name, far: peer_losses.value_and_gradient(name, PEERS[peer][name], given(arrays, far))
        return {name: jax.vmap(lambda far, name=name: both(name, far))(jnp.arange(2)) for name in names}

    with jax.enable_x64(True):
        arrays = {name: jnp.array(x, jnp.float64) for name, x in vectors["inputs"].items()}
        results = ours(arrays)
    mask = np.array(vectors["inputs"]["mask"]) > 0
    for name in names:
        for far, kind in enumerate(("near", "far")):
            loss, gradient = (x[far] for x in results[name])
            assert not np.any(gradient[~mask]), name
            if kind in theirs[name]:
                check(np.append(loss, gradient[mask]), theirs[name][kind], name)


def test_every_argument_of_the_table_has_a_proven_composition_of_public_functions():
    lines = peer_arguments.table()[2:]
    assert len(lines) == len(peer_arguments.ARGUMENTS) > 40
    for module, name in re.findall(r"(losses|kl|aggregation|importance_weights)\.(\w+)", "".join(lines)):
        assert name in getattr(policy, module).__all__, name


def check(ours, theirs, name):
    # eight digits are kept; of verl's, what 1e-8 in its denominators does to a long way
    near = 5e-7 if name == "geo_mean" else 1e-7
    np.testing.assert_allclose(ours, theirs, rtol=near, atol=near, err_msg=name)
