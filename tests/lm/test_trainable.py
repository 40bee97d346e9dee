"""Training of a part: the same gradients as of the whole, and no work for what is frozen."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm, penalties, training, transforms
from proxlm.lm import lora, trainable
from proxlm.policy import ppo, recipes
from tests.arrays import rough

SIZES = {"width": 8, "num_heads": 2, "num_kv_heads": 1, "max_length": 16, "unroll": 1}
CONFIG = lm.ModelConfig(11, num_layers=4, qkv_bias=True, **SIZES)
PARAMS = rough(CONFIG, 0.3)
TOKENS = np.random.default_rng(1).integers(0, 11, (2, 9))
SELECTIONS = {
    "some of everything": [trainable.last_layers(1), lambda path, leaf: path == "embedding/kernel", "down"],
    "holes": lambda path, _: np.array([True, False, True, True]) if "/out/" in path else "query" in path,
    "norms": trainable.PATTERNS["norms"],
    "nothing of the layers": "^norm/",
}


def loss(params):
    log_probs = jax.nn.log_softmax(lm.apply(params, TOKENS[:, :-1], CONFIG))
    return -jnp.mean(jnp.take_along_axis(log_probs, TOKENS[:, 1:, None], axis=2))


@functools.cache
def whole():
    return jax.jit(jax.value_and_grad(loss))(PARAMS)


@pytest.mark.parametrize("name", ["holes", *(pytest.param(n, marks=pytest.mark.slow) for n in SELECTIONS)])
def test_gradients_of_a_part_are_those_of_the_whole_and_the_rest_keeps_its_bits(name):
    trained, frozen = trainable.split(PARAMS, SELECTIONS[name])
    value, grads = jax.jit(jax.value_and_grad(lambda t, f: loss(trainable.join(t, f))))(trained, frozen)
    np.testing.assert_allclose(value, whole()[0], rtol=1e-6)
    expected, _ = trainable.split(whole()[1], SELECTIONS[name])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), grads, expected)
    jax.tree.map(np.testing.assert_array_equal, trainable.merge(trained, frozen), PARAMS)


def cost(select, config):
    """Operations, and bytes of temporary memory and gradients, of the gradient of a part."""
    shapes = jax.eval_shape(functools.partial(lm.init, config=config), jax.random.key(0))
    trained, frozen = trainable.split(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), select
    )
    run = lambda t, f, tokens: jnp.sum(lm.encode(trainable.join(t, f), tokens, config))
    compiled = jax.jit(jax.grad(run)).lower(trained, frozen, np.zeros((1, 64), np.int32)).compile()
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.parametrize(
    ("select", "share"),
    [
        pytest.param(trainable.last_layers(1), (2 + 1 + 1) / 6, marks=pytest.mark.slow),
        pytest.param(trainable.PATTERNS["norms"], (2 + 2 + 0) / 6, marks=pytest.mark.slow),
        (trainable.last_layers(1, "mlp/"), (2 + 1 / 4 + 3 / 4) / 6),  # the stream ends within the MLP
    ],
    ids=["layer", "norms", "mlp"],
)
def test_what_is_frozen_costs_no_gradient(select, share):
    """Products of N tokens with the kernels: 2NP forwards, 2NP for the stream and 2NP for kernels."""
    config = lm.ModelConfig(16, num_layers=2, width=64, num_heads=1, hidden_width=256)
    everything, memory = cost(".", config)
    operations, of_part = cost(select, config)
    # the attention's own products and what is no product are left to the tolerance
    assert operations / everything == pytest.approx(share, rel=0.12)
    assert memory - of_part > 0.9 * 4 * lm.num_params(config) / 2  # no gradient of at least the half


@pytest.mark.slow
def test_layers_in_a_loop_have_no_gradient_in_memory_either():
    config = lm.ModelConfig(16, num_layers=4, width=64, num_heads=1, hidden_width=256, unroll=1)
    (_, whole), (_, of_part) = cost(".", config), cost(trainable.last_layers(1), config)
    assert whole - of_part > 0.9 * 3 / 4 * 4 * lm.num_params(config)


def test_moments_exist_for_what_is_trained_alone():
    trained, _ = trainable.split(PARAMS, trainable.last_layers(1, "mlp/down"))
    sizes = [leaf.size for leaf in jax.tree.leaves(optax.adam(1e-3).init(trained))]
    assert sum(sizes) == 2 * 24 * 8 + 1


def test_a_proximal_chain_and_a_mask_by_path_work_on_the_part():
    trained, frozen = trainable.split(PARAMS, trainable.last_layers(1))
    is_mlp = functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: "mlp" in str(path))
    link = optax.masked(transforms.apply_prox(penalties.l1(1e3), 1.0), is_mlp)
    optimizer = optax.chain(optax.sgd(1.0), link)
    step = training.make_step(lambda t, f: loss(trainable.join(t, f)), optimizer)
    state, _ = jax.jit(step)(training.init(trained, optimizer), frozen)
    blocks = trainable.merge(state.params, frozen)["blocks"]
    assert not blocks["mlp"]["down"]["kernel"][3].any() and blocks["mlp"]["down"]["kernel"][2].all()
    assert blocks["attention"]["out"]["kernel"][3].all()


@pytest.mark.parametrize("kind", ["lora", pytest.param("last", marks=pytest.mark.slow)])
def test_an_actor_of_a_part_samples_and_scores_as_the_whole_and_refers_to_its_start(kind):
    config, trained, frozen = part_of(kind)
    actor = trainable.make_actor(lm.make_actor(config, 3, critic=False), frozen)
    # so that a group shares its prompt
    assert {"group_size"} < set(inspect.signature(actor.sample).parameters)

    @jax.jit
    def run(trained, frozen, key):
        own, params = (
            trainable.make_actor(lm.make_actor(config, 3, critic=False), frozen),
            {"policy": trained},
        )
        samples = own.sample(key, params, lm.Prompts(jnp.zeros((4, 2), jnp.int32)))
        whole = lm.score(trainable.join(trained, frozen), samples.tokens, config, start=2)
        return samples, own.score(params, samples), own.reference(params, samples), whole

    samples, scores, reference, whole = run(trained, frozen, jax.random.key(1))
    for found in (scores, reference, whole):
        np.testing.assert_allclose(found.log_probs, samples.log_probs, atol=1e-5)
    with pytest.raises(ValueError, match="pretrained"):
        actor.init(jax.random.key(0))


def part_of(kind):
    """A configuration, and a trained and a frozen part of its parameters."""
    config = lm.ModelConfig(8, num_layers=2, width=8, num_heads=2, unroll=1)
    params = rough(config, 0.3)
    if kind == "lora":
        return config, *lora.split(lora.init(jax.random.key(0), params, 2))
    return config, *trainable.split(params, trainable.last_layers(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["last", "lora"])
def test_ppo_trains_the_part_beside_one_frozen_base(kind):
    config, trained, frozen = part_of(kind)
    settings, optimizer = recipes.make("rloo", group_size=2, num_minibatches=1), optax.adam(1e-2)
    state = ppo.init({"policy": trained}, optimizer, settings)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (4, 2), 0, 8))
    reward = lambda samples: jnp.mean(samples.tokens[:, 2:] < 4, axis=1)

    @jax.jit
    def step(state, frozen, key):
        actor = trainable.make_actor(lm.make_actor(config, 3, critic=False), frozen)
        return ppo.make_step(actor, reward, prompts, optimizer, settings)(state, key)

    after, metrics = step(state, frozen, jax.random.key(1))
    assert abs(metrics.kl) < 1e-5  # the reference is where training starts
    assert abs(metrics.first_ratio_error) < 1e-5
    moved = jax.tree.map(lambda x, y: jnp.any(x != y).item(), after.params, state.params)
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_sampling_and_scoring_take_cut_layers():
    trained, frozen = trainable.split(PARAMS, trainable.last_layers(1))
    draw = jax.jit(functools.partial(lm.sample, config=CONFIG, num_tokens=4))
    one, other = (draw(jax.random.key(3), p, TOKENS) for p in (PARAMS, trainable.join(trained, frozen)))
    np.testing.assert_array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: trainable.split(PARAMS, "moe/"),
            r"select must be a match for some path, such as .*, got 'moe/'",
        ),
        (lambda: trainable.split(PARAMS, 3), r"a regular expression, a function of path and leaf, .* got 3"),
        (lambda: trainable.split(PARAMS, lambda p, x: [True, False]), r"must be one bool, or 4 for a leaf"),
        (lambda: trainable.last_layers(0), r"number must be an integer ≥ 1, got 0"),
        (lambda: trainable.split(PARAMS, trainable.last_layers(5)), r"at most 4, the layers, got 5"),
        (
            lambda: trainable.join({"norm": {}}, trainable.split(PARAMS, "mlp/")[1]),
            r"the trained part of this",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
