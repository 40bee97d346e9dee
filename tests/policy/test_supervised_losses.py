import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm, losses
from proxlm.policy import aggregation
from proxlm.policy import losses as loss_lib
from tests import arrays
from tests.policy.table_actor import compiled

LOG_PROBS = np.float32([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
MASK = np.array([[False, True, True], [False, False, True]])


@pytest.mark.parametrize(
    ("kind", "loss", "gradient"),
    [
        ("token", (2 + 3 + 6) / 3, [[0, -1 / 3, -1 / 3], [0, 0, -1 / 3]]),
        ("sequence", ((2 + 3) / 2 + 6) / 2, [[0, -1 / 4, -1 / 4], [0, 0, -1 / 2]]),
        ("sequence_sum", (2 + 3 + 6) / 2, [[0, -1 / 2, -1 / 2], [0, 0, -1 / 2]]),
        ("constant", (2 + 3 + 6) / 6, [[0, -1 / 6, -1 / 6], [0, 0, -1 / 6]]),
        (lambda mask: aggregation.select(2.0, mask), 22.0, [[0, -2, -2], [0, 0, -2]]),
    ],
    ids=["token", "sequence", "sequence_sum", "constant", "a function"],
)
def test_the_loss_and_its_gradient_by_hand(kind, loss, gradient, variant):
    fn = variant(jax.value_and_grad(lambda x: loss_lib.sft(x, MASK, kind)))
    found = fn(LOG_PROBS)
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-6)


def test_masked_slots_may_hold_anything():
    poisoned = np.where(MASK, LOG_PROBS, np.float32(np.nan))
    fn = jax.jit(jax.value_and_grad(lambda x: loss_lib.sft(x, MASK)))
    for a, b in zip(fn(poisoned), fn(LOG_PROBS), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loss_lib.sft(poisoned, np.zeros((2, 3), bool)) == 0


def test_the_prompt_is_not_learnt_and_the_rest_is_next_token():
    model = lm.ModelConfig(7, num_layers=1, width=8, num_heads=2, hidden_width=8, init_scale=0.5)
    tokens = np.array([[1, 2, 3, 4, 5], [6, 5, 4, 3, 0]])
    mask = np.array([[True] * 5, [True] * 4 + [False]])
    answers = np.asarray(loss_lib.completion_mask(mask, np.array([2, 3])))[:, 1:]
    assert answers.tolist() == [[False, True, True, True], [False, False, True, False]]

    @compiled
    def both(params):
        logits = lm.apply(params, tokens, model, mask=mask)[:, :-1]
        scores = lm.score(params, tokens, model, mask=mask).log_probs
        return loss_lib.sft(scores, answers), losses.next_token(logits, tokens[:, 1:])

    ours, each = map(np.asarray, both(arrays.rough(model, 0.5)))
    np.testing.assert_allclose(ours, (each[0, 1:].sum() + each[1, 2]) / 4, rtol=1e-5)


def test_padding_on_either_side_leaves_the_same_answer():
    left = jnp.array([[False, False, True, True, True]])
    found = loss_lib.completion_mask(left, jnp.array([1]))
    assert found.tolist() == [[False, False, False, True, True]]
    found = loss_lib.completion_mask(left[:, ::-1], jnp.array([1]))
    assert found.tolist() == [[False, True, True, False, False]]


def test_a_response_ends_with_its_first_stop_token():
    tokens = jnp.array([[3, 2, 0, 1], [1, 4, 1, 4], [3, 4, 5, 2], [3, 4, 5, 6]])
    of = lambda stop: jax.jit(loss_lib.response_mask, static_argnums=1)(tokens, stop).sum(1).tolist()
    assert of(1) == [4, 1, 4, 4] and of((1, 2)) == [2, 1, 4, 4]
    with pytest.raises(ValueError, match=r"tokens\.dtype must be an integer type"):
        loss_lib.response_mask(jnp.ones((1, 2)), 1)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"prompt_lengths\.shape must be .*, got \(\)"):
        loss_lib.completion_mask(MASK, 2)
    with pytest.raises(ValueError, match=r"mask\.dtype must be bool, got dtype\('int32'\)"):
        loss_lib.sft(LOG_PROBS, MASK.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"log_probs\.shape must be .*, got \(2, 2\)"):
        loss_lib.sft(LOG_PROBS[:, :2], MASK)
    with pytest.raises(ValueError, match=r"kind must be one of 'token'.*, got 'mean'"):
        loss_lib.sft(LOG_PROBS, MASK, "mean")
