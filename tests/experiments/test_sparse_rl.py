"""Lanes, exact success, and measures of change of sparse_rl; the whole of it is a slow proof."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sparse_rl
from experiments.support.models import pretrained
from experiments.support.reinforce import prompting
from experiments.support.reinforce.tasks import Problem
from experiments.support.run import cli, configs, runs
from experiments.support.sparse_rl import changes, judging, lanes
from proxlm import lm

SHOWN = (Problem("3 + 4 =", "7"), Problem("1 + 1 =", "2"))
ASKED = (Problem("12 + 4 =", "16"), Problem("0 + 5 =", "5"))


@pytest.fixture(scope="module")
def asker(tmp_path_factory):
    model = pretrained.load("untrained", tmp_path_factory.getbasetemp(), [p.question for p in SHOWN], 64)
    return prompting.Asker(model, SHOWN)


@pytest.mark.parametrize("text", ["adam", "l1@1e-3", "adam:3@1e-3", "l1:0@1e-3", "l1:1@0", "l7:1@1"])
def test_what_is_no_lane_is_refused(text):
    with pytest.raises(ValueError, match="lanes must be KIND@RATE or"):
        lanes.parse(text)


@pytest.mark.parametrize("kind", ["l1", "dual"])
def test_a_first_step_moves_the_weights_whose_gradient_exceeds_the_strength(kind):
    start, gradients = np.float32([0.3, -0.2, 0.1, 5.0]), np.float32([0.02, 0.3, -0.1, -0.4])
    chain = lanes.parse(f"{kind}:0.15@1e-2").chain()

    @jax.jit
    def step(gradients, state, params):
        updates, state = chain.update({"w": gradients}, state, {"w": params})
        return params + updates["w"], state

    new, state = step(gradients, jax.jit(chain.init)({"w": start}), start)
    np.testing.assert_array_equal(new != start, [False, True, False, True])
    np.testing.assert_allclose(new - start, [0, -0.005, 0, 0.00625], rtol=1e-4)
    assert np.asarray(step(-gradients, state, new)[0])[0] == start[0]


@pytest.mark.parametrize("lane", ["norms@1", "l1_norms:1@1"])
def test_lanes_of_norms_train_their_scales_alone(asker, lane):
    trained, _ = lanes.parse(lane).split(jax.random.key(0), asker.model.params, 1)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    assert len(paths) == 2 and all("norm" in path and "scale" in path for path in paths)


def test_rows_move_as_a_whole():
    start = {"kernel": jnp.ones((1, 2, 2)), "scale": jnp.ones((1, 2))}
    gradients = {"kernel": jnp.array([[[0.01, 0.3], [0.01, 0.0]]]), "scale": jnp.array([[0.3, 0.01]])}
    chain = lanes.parse("rows:0.1@1e-2").chain()
    updates, _ = jax.jit(chain.update)(gradients, chain.init(start), start)
    assert (updates["kernel"] != 0).tolist() == [[[False, True], [False, False]]]
    assert (updates["scale"] != 0).tolist() == [[True, False]]


def test_a_cut_keeps_the_largest_changes_and_counts_tell_precisions_apart():
    start, after = {"w": jnp.ones(4)}, {"w": jnp.array([1.0, 1.5, 0.8, 1.0001])}
    assert changes.cut(start, after, 0.5)["w"].tolist() == pytest.approx([1.0, 1.5, 0.8, 1.0])
    found = changes.counts(start, {"w": jnp.array([1.0, 1.5, 1.0, 1.0])}, after)
    assert {name: int(x) for name, x in found.items()} == {
        "moved": 2,
        "moved_since_start": 3,
        "bfloat16_moved": 1,
        "bfloat16_moved_since_start": 2,
    }
    assert changes.by_leaf({"w": jnp.ones((2, 2))}, {"w": jnp.array([[1, 2], [1, 1]])})["w"].tolist() == [
        0.5,
        0,
    ]


def test_success_is_the_probability_of_the_right_answer_and_of_what_ends_it(asker):
    model, asked = asker.model, judging.questions(asker, ASKED)
    trained, frozen = lm.trainable.split(model.params, lm.trainable.last_layers(1))
    changed = jax.tree.map(lambda x: 1.5 * x, trained)
    judge = judging.make_judge(asker, model.config, asked, model.params)
    assert judge(trained, frozen).kl == pytest.approx(0, abs=1e-6)
    found, params = judge(changed, frozen), lm.trainable.merge(changed, frozen)
    for i, (problem, prompt) in enumerate(zip(ASKED, _prompts(asker), strict=True)):
        answer = asker.tokenizer.encode(f" {problem.answer}", add_special_tokens=False).ids
        tokens = np.array([[*prompt, *answer, 0]])
        after, before = (_score(own, tokens, model.config, len(prompt)) for own in (params, model.params))
        ends = [t for t in asker.stops() if not asker.tokenizer.decode([t]).split("\n")[0].strip()]
        end = np.sum(np.exp(np.asarray(after.distribution)[0, -1])[ends])
        right = float(np.exp(np.sum(np.asarray(after.log_probs)[0, :-1])) * end)
        assert found.right[i] == pytest.approx(right, rel=1e-4)
        after, before = np.asarray(after.distribution), np.asarray(before.distribution)
        kl = np.sum(np.exp(after) * (after - before))
        assert found.kl[i] == pytest.approx(float(kl), rel=1e-2) and kl > 1e-4


@functools.partial(jax.jit, static_argnums=(2, 3))
def _score(params, tokens, config, start):
    return lm.score(params, tokens, config, start=start, full=True)


def _prompts(asker):
    prompts = asker.prompts(ASKED)
    return [row[mask].tolist() for row, mask in zip(*map(np.asarray, prompts[:2]), strict=True)]


@pytest.mark.slow
def test_it_writes_the_same_numbers_from_what_other_runs_have_trained(tmp_path):
    config = dataclasses.replace(configs.smoke(sparse_rl.Config()), held_out=60)  # of 100, so 40 are
    options = runs.Options(runs=str(tmp_path))
    found, again = (cli.start(sparse_rl.main, config, options) for _ in range(2))
    assert str(found) == str(again)
    assert len(list(tmp_path.glob("sparse_rl/cache/*/delta.safetensors"))) == 4
