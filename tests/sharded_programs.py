"""Run on four devices by `test_sharding`: training loops whose programs must divide their work."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.plan import programs
from experiments.support.run import policy_training
from proxlm import lm, sharding, training
from proxlm.lm import _chunks
from proxlm.policy import ppo, recipes
from proxlm.policy._iteration import experience

MODEL = lm.ModelConfig(vocab_size=32, num_layers=1, width=16, num_heads=4, value_head=True, max_length=64)
OPTIMIZER = optax.adam(1e-3)


def supervised(microbatches):
    """A training step of a plain function that pins nothing itself, with its state and batch."""
    loss = lambda params, rows: jnp.mean(jnp.tanh(rows @ params["up"]["kernel"]) @ params["down"]["kernel"])
    params = {"up": {"kernel": jnp.ones((64, 128))}, "down": {"kernel": jnp.ones((128, 64))}}
    step = training.make_step(loss, OPTIMIZER, microbatches=microbatches)
    return step, training.init(params, OPTIMIZER), jnp.ones((1024, 64))


def policy(microbatches):
    """An iteration of PPO, with its state and key."""
    config = ppo.PPOConfig(num_epochs=1, num_minibatches=2, num_microbatches=microbatches)
    actor = lm.make_actor(MODEL, 8)
    asked = 8 * len(jax.devices())  # rows of a minibatch's pieces divide, too
    prompts = lambda key: lm.Prompts(sharding.rows(jax.random.randint(key, (asked, 4), 0, 32)))
    reward = lambda samples: jnp.mean(samples.tokens[:, 4:] < 16, axis=1)
    state = ppo.init(actor.init(jax.random.key(0)), OPTIMIZER, config)
    return ppo.make_step(actor, reward, prompts, OPTIMIZER, config), state, jax.random.key(1)


def learning(microbatches, only_prepare=False):
    """The second half of an iteration, or what comes before its update, with its state and its samples."""
    config = ppo.PPOConfig(num_epochs=1, num_minibatches=2, num_microbatches=microbatches)
    actor, rows = lm.make_actor(MODEL, 8), 8 * len(jax.devices())
    state = ppo.init(actor.init(jax.random.key(0)), OPTIMIZER, config)
    samples = actor.sample(jax.random.key(1), state.params, lm.Prompts(jnp.zeros((rows, 4), int)))
    learn = ppo.make_collect_and_learn(actor, OPTIMIZER, config)[1]
    run = lambda state, data: learn(state, jax.random.key(2), *data)
    if only_prepare:
        run = lambda state, data: experience.prepare(state, *data, actor, config)
    return run, state, (samples, jnp.ones(rows))


def groups():
    """An iteration on fewer groups than devices, the head in chunks, with its state and key."""
    _chunks.LARGE, _chunks.CHUNK = 32 * 8, 32 * 2
    config = recipes.make("grpo", group_size=8).replace(num_epochs=1, num_minibatches=1)
    actor = lm.make_actor(dataclasses.replace(MODEL, value_head=False), 8, critic=False)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (2, 4), 0, 32))
    reward = lambda samples: jnp.mean(samples.tokens[:, 4:] < 16, axis=1)
    state = ppo.init(actor.init(jax.random.key(0)), OPTIMIZER, config)
    return ppo.make_step(actor, reward, prompts, OPTIMIZER, config), state, jax.random.key(1)


def sends_gradients(function, state, data):
    """Asserts that no activation moves between devices: all that is sent, once, is the gradient."""
    work = programs.work(compiled(function, state, data, sharding.make_mesh("data=4")).as_text())
    weights = 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    assert work.sent["all-reduce"] < 1.25 * weights, (work, weights)  # that of the embedding in two parts
    assert sum(work.sent.values()) < 1.5 * weights, (work, weights)


def seeds_send_nothing():
    """Asserts that seeds over devices need no collective, and have the numbers of one device."""

    def run(keys, weights):
        shared = jnp.tanh(weights)
        one = lambda key, x: jnp.tanh(x @ shared) + jax.random.normal(key, x.shape)
        return policy_training.each(one, keys, jnp.ones((8, 4, 16)))

    keys, weights = jax.random.split(jax.random.key(0), 8), jnp.eye(16)
    alone = jax.jit(run)(keys, weights)
    with jax.set_mesh(sharding.make_mesh("seeds=4")):
        assert not programs.work(jax.jit(run).lower(keys, weights).compile().as_text()).count
        np.testing.assert_allclose(alone, jax.jit(run)(keys, weights), atol=1e-6)


def decoding_reduces_twice_a_layer(num_kv_heads, axes):
    """Asserts what a token sends over `model`: two sums a layer, four of embedding and draw, no permutes."""
    config = dataclasses.replace(MODEL, num_layers=3, num_kv_heads=num_kv_heads, qkv_bias=True, vocab_size=64)
    params, prompts = lm.init(jax.random.key(0), config), jnp.zeros((4, 2), int)

    def count(num_tokens):
        sample = lambda params, data: lm.sample(jax.random.key(1), params, data, config, num_tokens)
        program = compiled(sample, params, prompts, sharding.make_mesh(axes))
        return programs.work(program.as_text()).count

    few, more = count(4), count(9)
    a_token = {kind: (more[kind] - few[kind]) / 5 for kind in more}
    assert a_token == {"all-reduce": 10, "all-gather": 1, "collective-permute": 0}, a_token


def explicit_axes_divide():
    """Asserts that a mesh of explicit axes, jax.make_mesh's, divides the work and keeps each place."""
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"))
    for name, (function, state, data) in (("supervised", supervised(4)), ("policy", policy(2))):
        alone = jax.jit(function).lower(state, data).compile().cost_analysis()["flops"]
        with jax.set_mesh(mesh):
            state = sharding.put(state, mesh)
            program = jax.jit(function).lower(state, data)
            assert program.compile().cost_analysis()["flops"] < 0.30 * alone, name
            places = [jax.typeof(x).sharding.spec for x in jax.tree.leaves(state)]
            assert places == [x.sharding.spec for x in jax.tree.leaves(program.out_info[0])], name
            params, tokens = lm.init(jax.random.key(0), MODEL), jnp.zeros((8, 4), int)
            tokens = jax.device_put(tokens, jax.P(("data", "fsdp")))
            for rows in (
                lm.score(params, tokens, MODEL),
                lm.sample(jax.random.key(0), params, tokens, MODEL, 2),
                lm.beam_search(params, tokens, MODEL, 2, width=2),
                lm.logits(params, lm.encode(params, tokens, MODEL), MODEL),
            ):
                assert all(jax.typeof(x).sharding.spec[0] == ("data", "fsdp") for x in jax.tree.leaves(rows))


def compiled(function, state, data, mesh):
    """The program, with the state placed over a mesh and the rows of the data cut."""
    with jax.set_mesh(mesh):
        data = jax.jit(sharding.rows)(data)
        return jax.jit(function).lower(sharding.put(state, mesh), data).compile()


def divides(sizes, name, function, state, data):
    """Asserts that each of four devices does a fourth of the work, of eight an eighth, by any state."""
    alone = jax.jit(function).lower(state, data).compile().cost_analysis()["flops"]
    program = compiled(function, state, data, sharding.make_mesh(sizes))
    share = program.cost_analysis()["flops"] / alone
    assert share < {4: 0.30, 8: 0.16}[len(jax.devices())], (
        f"{name}, {sizes}: each device does {share:.2f} of the work"
    )


def agrees(name, function, state, data):
    """Asserts the numbers of one device where weights, heads and rows are cut."""
    expected, _ = jax.jit(function)(state, data)
    mesh = sharding.make_mesh("fsdp=2,model=2")
    with jax.set_mesh(mesh):
        found, _ = jax.jit(function)(sharding.put(state, mesh), data)
    for one, other in zip(jax.tree.leaves(expected.params), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)
    down = next(
        x for path, x in jax.tree.leaves_with_path(found.params) if "down" in jax.tree_util.keystr(path)
    )
    assert tuple(down.sharding.spec)[-2:] == ("model", "fsdp"), f"{name}: {down.sharding.spec}"


if __name__ == "__main__":
    if sys.argv[1:] == ["eight"]:
        for pieces in (1, 4):
            prepare = functools.partial(learning, only_prepare=True)
            for name, make in {
                "supervised": supervised,
                "policy": policy,
                "learn": learning,
                "prepare": prepare,
            }.items():
                divides("data=8", f"{name} in {pieces}", *make(pieces))
        sys.exit()
    assert len(jax.devices()) == 4
    if sys.argv[1:] == ["quick"]:
        divides("data=2,fsdp=2", "supervised in 4", *supervised(4))
        sys.exit()
    if sys.argv[1:] == ["groups"]:
        sends_gradients(*groups())
        agrees("groups", *groups())
        seeds_send_nothing()
        sys.exit()
    if sys.argv[1:] == ["tensors"]:
        for num_kv_heads, axes in ((4, "model=4"), (2, "model=4"), (2, "data=2,model=2")):
            decoding_reduces_twice_a_layer(num_kv_heads, axes)
        sys.exit()
    if sys.argv[1:] == ["explicit"]:
        explicit_axes_divide()
        sys.exit()
    for make in (supervised, policy):
        agrees(make.__name__, *make(1))
        for sizes in ("data=4", "data=2,fsdp=2"):
            for pieces in (1, 4):
                divides(sizes, f"{make.__name__} in {pieces}", *make(pieces))
