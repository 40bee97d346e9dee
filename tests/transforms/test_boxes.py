"""One path for one leaf, whatever boxes it: the same zeros and the same numbers as in a plain dict."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from proxlm import checkpoint, penalties, transforms
from proxlm.penalties import grouping
from proxlm.transforms import reports
from tests.transforms import boxed
from tests.transforms.boxed import BOXINGS, weights

NEURONS = grouping.linked({"up/kernel": 1, "down/kernel": 0})
IS_KERNEL = lambda path, leaf: path.endswith("kernel")
STRENGTHS = {"up": {"kernel": 0.5, "bias": 0.1}, "down": {"kernel": 0.2, "bias": 0.0}}

# Each penalty is built from plain trees and from trees boxed as the weights are.
PENALTIES = {
    "l1": lambda box: penalties.l1(0.3),
    "masked by path": lambda box: penalties.masked(penalties.l1(0.5), IS_KERNEL),
    "linked neurons": lambda box: penalties.group_lasso(2.0, NEURONS),
    "heads": lambda box: penalties.masked(penalties.group_lasso(8.0, grouping.heads(2, 0)), IS_KERNEL),
    "strength tree": lambda box: penalties.l1(STRENGTHS),
    "boxed strengths": lambda box: penalties.l1(box(jax.tree.map(lambda w: 0.3 + 0 * w, weights()))),
    "anchor": lambda box: penalties.translate(penalties.l1(0.5), weights(3)),
    "boxed anchor": lambda box: penalties.translate(penalties.l1(0.5), box(weights(3))),
}
RATE = 0.2
TRANSFORMATIONS = {
    "apply_prox": lambda g: optax.chain(optax.sgd(RATE), transforms.apply_prox(g, RATE, anchored=True)),
    "proximal_step": lambda g: optax.chain(optax.scale_by_adam(), transforms.proximal_step(g, RATE)),
    "proximal_adam": lambda g: transforms.proximal_adam(RATE, g),
    "dual averaging": lambda g: transforms.dual_averaging_adam(RATE, g),
    "debias": lambda g: optax.chain(optax.sgd(RATE), transforms.debias(transforms.apply_prox(g, RATE), 1)),
    "prune_to": lambda g: optax.chain(optax.sgd(RATE), transforms.prune_to(0.5, NEURONS, every=2)),
}
# Each once; the rest of the table is among the slow proofs.
FAST = [
    ("masked by path", "proximal_step"),
    ("linked neurons", "proximal_adam"),
    ("boxed strengths", "dual averaging"),
    ("boxed anchor", "apply_prox"),
    ("heads", "debias"),
    ("l1", "prune_to"),
]
# Trees in the form of plain dicts do not fit another one.
FORMED = ("strength tree", "anchor")


def cases():
    """Each penalty, transformation and box; by default FAST with the boxes in turn."""
    boxes = list(BOXINGS)
    for pair in ((penalty, name) for penalty in PENALTIES for name in TRANSFORMATIONS):
        quick = {boxes[FAST.index(pair)], *(boxes[-1:] if pair == FAST[0] else ())} if pair in FAST else ()
        for box in boxes:
            if not (box == "haiku_dict" and pair[0] in FORMED):
                yield pytest.param(*pair, box, marks=[] if box in quick else [pytest.mark.slow])


def trained(tx, params, box):
    """The weights after two updates, as plain dicts."""
    state, step = tx.init(params), jax.jit(tx.update)
    for seed in (10, 20):
        updates, state = step(box(weights(seed)), state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, boxed.plain(params))


@functools.cache
def unboxed(penalty, transformation):
    """The weights trained as plain dicts."""
    bare = lambda tree: tree
    expected = trained(TRANSFORMATIONS[transformation](PENALTIES[penalty](bare)), weights(), bare)
    if (penalty, transformation) in FAST and "anchor" not in penalty:
        assert any(np.any(leaf == 0) for leaf in jax.tree.leaves(expected))
    return expected


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), got, expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a == 0, b == 0), got, expected)


@pytest.mark.parametrize(("penalty", "transformation", "box"), list(cases()))
def test_boxes_change_no_number(penalty, transformation, box):
    box = BOXINGS[box]
    tx = TRANSFORMATIONS[transformation](PENALTIES[penalty](box))
    assert_same(trained(tx, box(weights()), box), unboxed(penalty, transformation))


IN_OPTIMIZERS = [
    pytest.param(*pair, marks=[] if pair in FAST[1:3] else pytest.mark.slow)
    for pair in ((penalty, name) for penalty in PENALTIES for name in TRANSFORMATIONS)
]


@pytest.mark.parametrize(("penalty", "name"), IN_OPTIMIZERS)
def test_inside_nnx_optimizer_it_is_the_same(penalty, name):
    make, net = PENALTIES[penalty], boxed.nnx_module(weights())
    tx = TRANSFORMATIONS[name](make(boxed.nnx_state))
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    step = nnx.jit(lambda net, optimizer, gradients: optimizer.update(net, gradients))
    for seed in (10, 20):
        step(net, optimizer, boxed.nnx_state(weights(seed)))
    got = jax.tree.map(np.asarray, boxed.plain(nnx.state(net, nnx.Param)))
    assert_same(got, unboxed(penalty, name))


IN_FILES = [
    pytest.param(box, marks=[] if box in (boxed.linen_boxed, boxed.nnx_state) else pytest.mark.slow, id=name)
    for name, box in BOXINGS.items()
    if box is not boxed.haiku_dict  # a tree of other paths
]


@pytest.mark.parametrize("box", IN_FILES)
def test_reports_and_checkpoints_know_the_same_paths(box, tmp_path):
    tree = weights()
    tree["up"]["kernel"][:, :2] = 0.0
    for measure in (reports.sparsity, reports.rank, lambda x: reports.live_groups(x, grouping.axes(-1))):
        assert jax.tree.map(float, measure(box(tree))) == jax.tree.map(float, measure(tree))
    assert sorted(reports.report(box(tree)).split("\n")) == sorted(reports.report(tree).split("\n"))
    checkpoint.save(tmp_path, 1, box(tree), {})
    back = checkpoint.restore(tmp_path, tree if box is boxed.linen_boxed else box(weights(5)), {})
    jax.tree.map(np.testing.assert_array_equal, boxed.plain(back), tree)
