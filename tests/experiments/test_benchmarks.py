"""The benchmarks: operations counted by hand, jobs that run, and a peer that computes the same."""

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import (
    accelerator,
    chain,
    clock,
    grpo,
    matmul,
    operators,
    ppo,
    prox,
    sampling,
    solvers,
    sweeps,
    training,
)
from proxlm import lm
from proxlm.policy import ppo as ppo_lib

QUICK = clock.Settings("wall", repeats=1, seconds=0.0)
TRAINING = training.Job(2, 8, 2, 11, batch=4, length=6)
SAMPLING = sampling.Job(1, 8, 2, 11, batch=4, prompt=3, response=5)
PPO = ppo.Job(1, 8, 2, 11, prompt=3, response=4, batch=4, epochs=2, minibatches=2)
SWEEP = sweeps.Job(PPO, runs=2)
PROX = operators.Job(96, group=8, row=12, strengths=2, swept_entries=200)
CHAIN = chain.Job(width=4, layers=1, vocabulary=6, every=2)
# L = 2, D = 6, H = 3, H_kv = 1, d = 2, F = 10, V = 7.
GROUPED = lm.ModelConfig(7, num_layers=2, width=6, num_heads=3, num_kv_heads=1, hidden_width=10)
CRITIC = dataclasses.replace(GROUPED, lm_head=False, value_head=True)

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def test_layers_are_charged_for_their_kernels():
    # Per layer 6·(3 + 2)·2 for q, k, v; 6·6 for the output; 3·6·10 for the MLP.
    assert matmul.dense(GROUPED) == 2 * 2 * (60 + 36 + 180)
    blocks = jax.eval_shape(lambda: lm.init(jax.random.key(0), GROUPED))["blocks"]
    sizes = [x.size for x in jax.tree.leaves(blocks) if x.ndim > 2]
    assert matmul.dense(GROUPED) == 2 * sum(sizes)


def test_attention_is_charged_for_the_keys_a_query_sees():
    # Three queries see 1 + 2 + 3 keys; each costs 2·2 for q·k and 2·2 for the values, in 3 heads.
    assert matmul.attention(GROUPED, 3) == 2 * 6 * 3 * (4 + 4)


def test_heads_are_charged_where_they_are_read():
    assert matmul.head(GROUPED) == 2 * 6 * 7
    assert matmul.head(CRITIC) == 2 * 6
    once, twice = (matmul.forward(GROUPED, 5, 3, read) for read in (1, 2))
    assert twice - once == 5 * 84
    assert once == 5 * (3 * 1104 + 288 + 84)


def test_training_is_three_forward_passes():
    assert matmul.training_step(GROUPED, 5, 3) == 3 * 5 * (3 * 1104 + 288 + 3 * 84)


def test_the_jobs_have_the_operations_counted_by_hand():
    # tiny: 4096 tokens at 2·4·(4·128² + 3·128·344) + 2·128·256, and 64 sequences of 2080 pairs.
    forward = 4096 * (1_581_056 + 65_536) + 64 * 4 * 4 * 128 * 2080
    assert training.JOBS["tiny"].flops == 3 * forward
    assert training.JOBS["small"].model.hidden_width == 1024
    assert ppo.JOBS["tiny"].policy.hidden_width == 88


def test_the_last_sampled_token_is_not_fed_back():
    assert matmul.sampling(GROUPED, 5, 2, 2) == 5 * (3 * 1104 + 288 + 2 * 84)


def test_ppo_is_charged_for_rollout_scores_and_epochs():
    policy, critic = (5 * (3 * 1104 + 288 + 2 * 6 * outputs * 2) for outputs in (7, 1))
    assert matmul.ppo(GROUPED, CRITIC, 5, 2, 2, 4) == policy + 13 * (policy + critic)


def test_shapes_of_a_pass_add_up_to_its_dense_operations():
    shapes = matmul.shapes(GROUPED, 9)
    assert shapes[(9, 6, 10)] == 2  # q, k, v: five heads of width 2
    assert sum(2 * math.prod(s) * n for s, n in shapes.items()) == 9 * (1104 + 84)


def test_the_rate_of_a_mix_is_its_operations_over_its_seconds():
    # 16 FLOPs at 2 FLOP/s and two times 16 at 8 FLOP/s: 48 FLOPs in 8 + 4 seconds.
    counts, rates = {(2, 2, 2): 1, (1, 2, 4): 2}, {(2, 2, 2): 2.0, (1, 2, 4): 8.0}
    assert matmul.mixed_rate(counts, rates) == 4.0


def test_a_chain_of_products_does_the_operations_it_reports():
    call, flops = matmul.there_and_back((8, 32, 64), "float32")
    assert flops == 64 * 2 * 2 * 8 * 32 * 64
    x = call()
    assert x.shape == (8, 32)
    assert 1e-6 < float(jnp.std(x)) < 1e6
    assert matmul.there_and_back((512, 512, 2048), "float32")[1] == 4 * 512 * 512 * 2048


def test_functions_take_turns_and_seconds_are_per_call(monkeypatch):
    order, now = [], [0.0]

    def work(name, durations):
        def call():
            order.append(name)
            now[0] += durations.pop(0)

        return call

    monkeypatch.setitem(clock.CLOCKS, "wall", lambda: now[0])
    functions = {"a": work("a", [9.0, 1.0, 1.0, 3.0, 2.0]), "b": work("b", [7.0] + [0.5] * 7)}
    marks = []
    timings = clock.measure(
        functions, clock.Settings("wall", repeats=3, seconds=1.0), lambda: marks.append(len(order))
    )
    assert timings["a"] == clock.Timing(median=2.0, best=1.0, first=9.0, samples=3)
    assert timings["b"] == clock.Timing(median=0.5, best=0.5, first=7.0, samples=3)
    assert "".join(order) == "ab" + "ab" + "abb" * 3
    assert marks == [2]
    assert clock.caption(timings) == "median (best) of n=3 interleaved samples"


def test_ratios_are_of_medians_and_of_bests():
    seconds = {"us": (2.0, 1.0), "them": (6.0, 1.5)}
    assert clock.ratios(seconds, "us") == {"us": [1.0, 1.0], "them": [3.0, 1.5]}


@pytest.mark.parametrize("kind", ["cpu", "wall"])
def test_real_clocks_give_positive_seconds(kind):
    settings = clock.Settings(kind, repeats=3, seconds=1e-3)
    timing = clock.measure({"sum": lambda: sum(range(1000))}, settings)["sum"]
    assert 0 < timing.best <= timing.median < 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="clock='sun': expected one of cpu, wall"):
        clock.Settings("sun")
    with pytest.raises(ValueError, match="repeats=0: expected at least 1"):
        clock.Settings(repeats=0)


def test_processor_time_is_refused_on_several_cores(monkeypatch):
    monkeypatch.setattr(clock, "cores", lambda: 2)
    with pytest.raises(ValueError, match="with 2 cores"):
        benchmarks.check(clock.Settings("cpu"))
    monkeypatch.setattr(clock, "cores", lambda: 1)
    benchmarks.check(clock.Settings("cpu"))


def test_the_line_about_the_hardware_names_what_counts():
    line = clock.hardware(QUICK)
    assert f"jax {jax.__version__}" in line
    assert "core" in line and "\n" not in line and line.endswith("; wall time")


@pytest.mark.slow
def test_training_goes_on_from_call_to_call():
    call = training.ours(TRAINING)
    first, second = call(), call()
    assert first.shape == (3,)
    assert np.allclose(first, np.log(11), atol=0.05)
    assert np.all(second < first)  # the same windows again


@pytest.mark.slow
def test_sampling_continues_every_prompt():
    samples = sampling.ours(SAMPLING)()
    assert samples.tokens.shape == (4, 8)
    assert np.array_equal(samples.tokens[:, :3], sampling.prompts(SAMPLING))


def test_prompts_that_do_not_divide_among_devices_are_refused():
    with pytest.raises(ValueError, match="batch=4 does not divide into num_devices=3"):
        sampling.sharded(SAMPLING, 3)


@pytest.mark.slow
def test_sampling_on_two_devices_is_measured_elsewhere():
    timing = sampling.in_another_process(SAMPLING, 2, QUICK)
    assert timing.samples == 1 and 0 < timing.best <= timing.first


@pytest.mark.slow
def test_ppo_compiles_once():
    call = ppo.ours(PPO)
    with ppo.compilations() as seen:
        rewards = [call()]
        compiled = len(seen)
        rewards += [call(), call()]
    assert compiled > 0 and len(seen) == compiled
    assert all(0 <= reward <= 1 for reward in rewards)
    assert len(set(rewards)) > 1  # every iteration draws its own prompts


@pytest.mark.slow
def test_settings_side_by_side_are_settings_one_after_another_and_compile_once():
    numbers = sweeps.settings_of(SWEEP)
    states = jax.vmap(functools.partial(sweeps.begin, SWEEP))(numbers)
    fn = functools.partial(sweeps.iteration, SWEEP)
    many, advance = jax.jit(jax.vmap(fn))(states, numbers), jax.jit(fn)
    row = lambda i: jax.tree.map(lambda x: x[i], (states, numbers))
    second, singles = row(1), [advance(*row(0))]
    with ppo.compilations() as seen:
        singles.append(advance(*second))
    assert not seen  # though the second has its own numbers
    for i, single in enumerate(singles):
        close = lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5)
        jax.tree.map(close, many[0].params, single[0].params)
    heads = [single[0].params["critic"]["value"]["bias"] for single in singles]
    assert abs(heads[0] - heads[1]) > 1e-4


def test_a_chain_goes_on_from_call_to_call_in_strides():
    params, gradients = (chain.weights(CHAIN, jnp.float32, seed) for seed in (0, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4 * (12 + 4 + 16 + 16 + 2 + 6 + 1)
    call = chain.stepping(optax.sgd(1.0), params, gradients, steps=2)
    for times in (2, 4):
        expected = jax.tree.map(lambda p, g: p - times * g, params, gradients)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), call(), expected)


def test_decoding_reads_weights_and_half_of_the_cache_for_each_token():
    model = accelerator.shape_of("tiny", 32)
    assert accelerator.bytes_read(model, 3, 32) == 16 * 2 * (lm.num_params(model) + 2 * 3 * 32 * 64)


@pytest.mark.slow
def test_an_accelerator_is_measured_by_one_command(capsys):
    text = accelerator.main(accelerator.Config(tiny=True))
    assert text in capsys.readouterr().out
    for word in ("training, cudnn", "decoding, 2 rows", "2 seeds in one vmap"):
        assert word in text


@pytest.mark.slow
def test_every_table_is_written(tmp_path, monkeypatch, capsys):
    toys = ((training, TRAINING), (sampling, SAMPLING), (ppo, PPO), (prox, PROX), (chain, CHAIN))
    toys += ((sweeps, SWEEP), (grpo, grpo.Job(1, 16, 2, 16, 3, 4, batch=2, group=4, epochs=1, minibatches=2)))
    for module, job in toys:
        monkeypatch.setattr(module, "JOBS", {"toy": job})
    monkeypatch.setattr(solvers, "compare", lambda jobs, settings: iter(["the solvers"]))
    monkeypatch.setattr(sampling, "_can_share", lambda job, settings: False)
    monkeypatch.setattr(clock, "torch_fits", lambda: False)
    monkeypatch.setattr(matmul, "squares", lambda quick: [(16, 16, 16)])
    text = benchmarks.main(benchmarks.Config(quick=True, clock="wall"), tmp_path)
    (path,) = tmp_path.glob("benchmarks/*/tables.txt")
    assert path.read_text() == text
    for word in ("16 x 16 x 16", "shapes of ppo toy", "% of best square", "products, own shapes"):
        assert word in text
    assert text.count("toy       proxlm") == 3  # training, twice, and sampling
    assert "toy operators" in text and "toy sweep" in text and "GRPO" in text
    for word in ("toy float32 chain", "toy bfloat16 chain", "nuclear every 2", "0.0M weights"):
        assert word in text
    assert "compilations after it 0" in text
    assert "the solvers" in text and "toy x 2" in text
    assert "compilations after the first call of each 0" in text
    assert text.split("\n")[0] in capsys.readouterr().out


@needs_torch
def test_torch_trains_through_the_same_losses(monkeypatch):
    # Six long steps with a strong decay, so that any difference shows in the later losses.
    monkeypatch.setattr(training, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(training, "WEIGHT_DECAY", 3.0)
    ours, theirs = training.ours(TRAINING), training.torch_eager(TRAINING)
    for _ in range(2):
        np.testing.assert_allclose(theirs(), ours(), atol=1e-5)


@needs_torch
def test_torch_samples_what_it_scores_as_we_do():
    from experiments.benchmarks import torch_peer

    params = widened(lm.init(jax.random.key(0), SAMPLING.model))
    call = torch_peer.sampling(params, SAMPLING.model, sampling.prompts(SAMPLING), 5)
    tokens, log_probs = call()
    assert np.array_equal(tokens[:, :3], sampling.prompts(SAMPLING))
    scores = lm.score(params, jnp.asarray(tokens), SAMPLING.model, start=3)
    np.testing.assert_allclose(log_probs, scores.log_probs, atol=1e-5)


@needs_torch
def test_torch_learns_the_same_from_the_same_samples():
    import torch

    from experiments.benchmarks import torch_ppo

    # Plain descent shows every gradient as it is; at the second update the ratios are not 1.
    job = dataclasses.replace(PPO, epochs=2, minibatches=1)
    actor, optimizer = ppo.actor(job), optax.sgd(0.5)
    params = widened(actor.init(jax.random.key(0)))
    reference = widened(actor.init(jax.random.key(1)))
    state = ppo_lib.init(params, optimizer, job.settings, reference)
    prompts = lm.Prompts(jnp.arange(12).reshape(4, 3) % 11)
    samples = actor.sample(jax.random.key(2), params, prompts)
    scores = jnp.array([0.0, 1.0, 0.5, 0.25])
    learn = ppo_lib.make_collect_and_learn(actor, optimizer, job.settings)[1]
    new_params = learn(state, jax.random.key(3), samples, scores)[0].params

    models = torch_ppo.build(params, job.policy, job.critic)
    models = models._replace(reference=torch_ppo.build(reference, job.policy, job.critic).policy)
    expected = torch_ppo.build(new_params, job.policy, job.critic)
    tokens, log_probs = (torch.tensor(np.asarray(x)) for x in (samples.tokens, samples.log_probs))
    with torch.no_grad():
        experience = torch_ppo.prepare(
            models, tokens.long(), log_probs, torch.tensor(np.asarray(scores)), job.settings
        )
    learners = [*models.policy.parameters(), *models.critic.parameters()]
    torch_ppo.learn(models, torch.optim.SGD(learners, 0.5), experience, job.settings)
    wanted = [*expected.policy.parameters(), *expected.critic.parameters()]
    for learnt, want in zip(learners, wanted, strict=True):
        np.testing.assert_allclose(learnt.detach(), want.detach(), atol=1e-5)


@needs_torch
def test_torch_iterates():
    call = ppo.torch_by_hand(PPO)
    assert all(0 <= call() <= 1 for _ in range(2))


def widened(params):
    """Parameters large enough, heads included, for every term of a loss to count."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)
