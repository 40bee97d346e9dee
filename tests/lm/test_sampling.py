"""Sampling against full forward passes, against scoring, and against the law it should follow."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm._decoding import distribution, rows
from proxlm.lm import _attention, _forward, _layer_kernels
from tests import arrays

# Every option of the model at once, and an epsilon that shows: decoding must know them all.
CONFIG = lm.ModelConfig(
    vocab_size=17,
    num_layers=1,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    max_length=16,
    norm_epsilon=0.1,
    qk_norm="head",
    qkv_bias=True,
    tie_embeddings=False,
)
SMALL = lm.ModelConfig(vocab_size=6, num_layers=1, width=8, num_heads=2, max_length=4)
SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.7},
    "hot": {"temperature": 1.3},
    "top k": {"top_k": 5},
    "top p": {"top_p": 0.8},
    "min p": {"min_p": 0.1},
    "all at once": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
    "greedy": {"greedy": True},
    "stop": {"stop_token": 3},
    "greedy stop": {"greedy": True, "stop_token": 3, "temperature": 0.5},
}
STATIC = ("config", "num_tokens", "early_exit", "segment", "group_size", "num_microbatches")
PROMPTS = np.random.default_rng(0).integers(0, 17, (6, 6))
RAGGED = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0],
    ],
    bool,
)
NUM_TOKENS, SAMPLING = 10, lm.SamplingConfig()

compiled = jax.jit(lm.sample, static_argnames=STATIC)
score = jax.jit(lm.score, static_argnames=("config", "start", "full"))
apply = jax.jit(lm.apply, static_argnames="config")

rough = functools.partial(arrays.rough, scale=0.5)

PARAMS = rough(CONFIG)


def sample(settings, *, seed=1, prompts=PROMPTS, mask=RAGGED, params=PARAMS, **options):
    """Ten tokens after each ragged prompt."""
    return compiled(
        jax.random.key(seed),
        params,
        prompts,
        CONFIG,
        NUM_TOKENS,
        prompt_mask=mask,
        sampling=lm.SamplingConfig(**settings),
        **options,
    )


def assert_same(samples, expected):
    """Same tokens, masks and endings; log-probabilities but for rounding."""
    for name in ("tokens", "mask", "response_mask", "ended"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(expected, name), name)
    np.testing.assert_allclose(samples.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)


def test_greedy_decoding_equals_full_forward_passes_without_a_cache():
    samples = sample({"greedy": True})
    for row, (prompt, mask) in enumerate(zip(PROMPTS, RAGGED, strict=True)):
        length = mask.sum()
        tokens = np.zeros((1, CONFIG.max_length), int)
        tokens[0, :length] = prompt[mask]
        # What follows in the row is not there yet, and causality hides it.
        for at in range(length, length + NUM_TOKENS):
            tokens[0, at] = np.argmax(apply(PARAMS, tokens, CONFIG)[0, at - 1])
        expected = tokens[0, length : length + NUM_TOKENS]
        np.testing.assert_array_equal(samples.tokens[row, 6:], expected)


def test_a_sample_holds_the_prompt_at_its_end_and_the_response_after_it():
    samples = sample({})
    assert samples.tokens.dtype == jnp.int32
    for tokens, mask, prompt, valid in zip(*map(np.asarray, samples[:2]), PROMPTS, RAGGED, strict=True):
        np.testing.assert_array_equal(tokens[:6][mask[:6]], prompt[valid])
        np.testing.assert_array_equal(mask[:6], np.sort(valid))
    assert samples.response_mask.all() and not samples.ended.any()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("plain", "all at once") else pytest.mark.slow)
        for name in SETTINGS
    ],
)
def test_the_log_probs_of_sampling_are_those_of_scoring(name):
    settings, samples = lm.SamplingConfig(**SETTINGS[name]), sample(SETTINGS[name])
    scores = score(PARAMS, samples.tokens, CONFIG, mask=samples.mask, start=6, sampling=settings)
    expected = np.where(samples.response_mask, scores.log_probs, 0.0)
    np.testing.assert_allclose(samples.log_probs, expected, rtol=1e-5, atol=1e-5)
    assert settings.greedy == (samples.log_probs == 0).all()


def test_one_row_samples_what_is_scored_and_copies_its_cache_at_no_token():
    config = lm.ModelConfig(vocab_size=17, num_layers=2, width=48, num_heads=2, max_length=40)
    params, prompts = rough(config), jnp.asarray(np.resize(PROMPTS, (1, 30)))
    run = jax.jit(functools.partial(lm.sample, config=config, num_tokens=NUM_TOKENS))
    program = run.lower(jax.random.key(1), params, prompts).compile()
    samples = program(jax.random.key(1), params, prompts)
    scores = score(params, samples.tokens, config, mask=samples.mask, start=30, sampling=SAMPLING)
    np.testing.assert_allclose(samples.log_probs, scores.log_probs, rtol=1e-5, atol=1e-5)
    if jax.default_backend() == "cpu":
        assert "f32[2,40,24]" in program.as_text()  # keys or values of a layer
        assert not re.findall(r"f32\[(?:1,)?2,40,24\]\S* copy\(.*", program.as_text())


ONE_STOP = [pytest.param(x, marks=pytest.mark.slow) for x in (0, 3, 16)]


@pytest.mark.parametrize("stop", [(3, 16), *ONE_STOP])
def test_a_response_runs_up_to_its_stop_token_and_holds_it(stop):
    samples = jax.tree.map(np.asarray, sample({"stop_token": stop, "temperature": 1.5}))
    free = np.asarray(sample({"temperature": 1.5}).tokens)[:, 6:]
    responses = samples.tokens[:, 6:]
    assert 0 < samples.ended.sum() < 6  # both kinds are there
    ends = responses[np.arange(6), samples.response_mask.sum(axis=1) - 1]
    assert set(np.ravel(stop)) == set(ends[samples.ended].tolist())  # each of them ends a response
    for row, response in enumerate(free):
        places = np.flatnonzero(np.isin(response, stop))
        length = places[0] + 1 if len(places) else NUM_TOKENS
        assert samples.ended[row] == (len(places) > 0)
        np.testing.assert_array_equal(samples.response_mask[row], np.arange(NUM_TOKENS) < length)
        np.testing.assert_array_equal(responses[row, :length], response[:length])
        assert (responses[row, length:] == 0).all()
        assert (samples.log_probs[row, length:] == 0).all()
        assert (samples.log_probs[row, :length] < 0).all()
    np.testing.assert_array_equal(samples.mask[:, 6:], samples.response_mask)


# By default it grows where an early exit is asked for, below.
@pytest.mark.slow
@pytest.mark.parametrize("segment", [7, 1, 100])
def test_the_growth_of_the_cache_changes_nothing(segment):
    settings = {"stop_token": 3, "temperature": 1.5}
    assert_same(sample(settings, segment=segment), sample(settings))


@pytest.mark.parametrize("unroll", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_scanned_layers_sample_what_unrolled_ones_do(unroll, monkeypatch):
    monkeypatch.setattr(_layer_kernels, "LARGE", 1)
    kinds = {"window": 3, "window_layers": (True, False), "rope_layers": (True, False)}
    config = dataclasses.replace(CONFIG, num_layers=2, unroll=unroll, **kinds)
    params = rough(config)
    how = {"prompt_mask": RAGGED, "segment": 6, "sampling": lm.SamplingConfig(stop_token=3)}
    scanned, unrolled = (
        compiled(jax.random.key(1), params | {"blocks": blocks}, PROMPTS, config, NUM_TOKENS, **how)
        for blocks in (params["blocks"], lm.unstack(params["blocks"]))
    )
    assert_same(scanned, unrolled)


@pytest.mark.parametrize("rows", [9, 65])
def test_kernels_multiply_where_they_lie_and_narrow_ones_as_their_wide_copies(rows, monkeypatch):
    monkeypatch.setattr(_layer_kernels, "LARGE", 1)
    x, stack = arrays.normal(0, (rows, 128)), jnp.asarray(arrays.normal(1, (3, 128, 2, 5)), jnp.bfloat16)
    kernel = jnp.asarray(arrays.normal(2, (300, 128)), jnp.bfloat16)  # of 3 parts, the last not full
    broad = jnp.asarray(arrays.normal(3, (3, 128, 2, 200)), jnp.bfloat16)

    @jax.jit
    def products(x, stack, kernel, broad):
        pull = jax.grad(lambda kernel: jnp.sum(jnp.sin(_layer_kernels.head_product(x, kernel))))(kernel)
        of_layer = lambda stack: _layer_kernels.product(x, _layer_kernels.LayerKernel(stack, 2))
        head = _layer_kernels.head_product(x, kernel)
        return of_layer(stack), head, pull.astype(jnp.float32), of_layer(broad)

    wide = [x.astype(jnp.float32) for x in (stack, kernel, broad)]
    narrow, widened = products(x, stack, kernel, broad), products(x, *wide)
    np.testing.assert_array_equal(narrow[0], widened[0])
    np.testing.assert_array_equal(narrow[3], widened[3])
    np.testing.assert_allclose(widened[3], x @ wide[2][2].reshape(128, 400), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(narrow[1], widened[1], rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(narrow[2], widened[2], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(widened[0], x @ wide[0][2].reshape(128, 10), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(widened[1], x @ wide[1].T, rtol=2e-5, atol=2e-5)


def test_layers_in_bfloat16_are_widened_one_at_a_time_with_the_gradients_of_all():
    config = lm.ModelConfig(16, num_layers=9, width=64, num_heads=1)
    step = lambda x, block, view: (jnp.tanh(x @ block["kernel"].astype(x.dtype)), None)
    x, narrow = arrays.normal(0, (2, 64)), jnp.asarray(arrays.normal(1, (9, 64, 64)) / 8, jnp.bfloat16)

    def run(stack, x):
        return _forward.scan_layers(step, {"blocks": {"kernel": stack}}, x, [None], config)[0]

    compiled = jax.jit(run).lower(narrow, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < narrow.nbytes  # nor a copy of their bits
    head = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((65, 64), "f4"), ((4096, 64), "bfloat16"))]
    of_head = jax.jit(_layer_kernels.head_product).lower(*head).compile().memory_analysis()
    assert of_head.temp_size_in_bytes < 4096 * 64
    slope = jax.jit(jax.grad(lambda *given: jnp.sum(run(*given))))
    wide = narrow.astype(jnp.float32)
    np.testing.assert_array_equal(compiled(narrow, x), jax.jit(run)(wide, x))
    np.testing.assert_array_equal(slope(narrow, x), slope(wide, x).astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sampling_and_scoring_hold_no_second_copy_of_the_weights(dtype):
    config = lm.ModelConfig(4096, num_layers=10, width=256, num_heads=4, num_kv_heads=2)
    shapes = jax.eval_shape(lambda: lm.init(jax.random.key(0), config))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    sample = lambda params, tokens: lm.sample(jax.random.key(0), params, tokens, config, 8)
    for run in (sample, lambda params, tokens: lm.score(params, tokens, config)):
        memory = jax.jit(run).lower(params, np.zeros((2, 8), np.int32)).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.5 * memory.argument_size_in_bytes


def test_attention_by_blocks_is_that_at_once():
    query, key, value = (arrays.normal(i, (2, heads, 300, 4)) for i, heads in enumerate((4, 2, 2)))
    padding = np.array([2, 0])[:, None, None, None]
    visible = np.tril(np.ones((1, 1, 300, 300), bool)) & (np.arange(300) > padding)
    at_once = lambda *args: _attention._mix(_attention.attention(args[0], args[1], *args[3:]), args[2])

    @jax.jit
    def results(query, key, value, visible):
        of = lambda fn: lambda *heads: fn(*heads, visible, 0.7, 3.0)[:, :, 3:]  # of rows that see a key
        fns = (_attention.attend_by_blocks, _attention.attend_causally, at_once)
        forms = [jax.vjp(of(fn), query, key, value) for fn in fns]
        return [(y, *pull(jnp.sin(9 * y))) for y, pull in forms]

    *forms, expected = results(query, key, value, visible)
    for form in forms:
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=4e-6), form, expected)


@pytest.mark.parametrize("blocks", ["scanned", pytest.param("unrolled", marks=pytest.mark.slow)])
def test_a_group_that_shares_its_prompt_draws_what_repeated_prompts_do(blocks):
    config = dataclasses.replace(CONFIG, unroll=1) if blocks == "scanned" else CONFIG
    how = {"sampling": lm.SamplingConfig(stop_token=3), "segment": 6}
    run = lambda rows, **size: compiled(
        jax.random.key(1), PARAMS, rows(PROMPTS), config, 10, prompt_mask=rows(RAGGED), **how, **size
    )
    repeated = run(lambda x: x[:2].repeat(3, 0))
    assert_same(run(lambda x: x[:2], group_size=3, num_microbatches=2), repeated)
    if blocks == "unrolled":
        assert_same(run(lambda x: x[:2], group_size=3), repeated)


def test_an_early_exit_changes_nothing():
    settings = {"stop_token": 3, "temperature": 1.5}
    assert_same(sample(settings, early_exit=True, segment=7), sample(settings))
    # One row six times, and a head that gives it the stop token at once: the loop runs no step.
    same = {"prompts": PROMPTS[:1].repeat(6, 0), "mask": RAGGED[:1].repeat(6, 0)}
    first = np.argmax(np.asarray(apply(PARAMS, PROMPTS[:1], CONFIG))[0, -1])
    swapped = np.array(PARAMS["head"]["kernel"])
    swapped[[3, first]] = swapped[[first, 3]]
    same["params"] = PARAMS | {"head": {"kernel": swapped}}
    settings = {"stop_token": 3, "temperature": 1e-3}
    early = sample(settings, **same, early_exit=True, segment=7)
    assert early.ended.all() and (early.response_mask.sum(axis=1) == 1).all()
    assert_same(early, sample(settings, **same))


@pytest.mark.parametrize("settings", [pytest.param({"greedy": True}, marks=pytest.mark.slow), {}])
@pytest.mark.parametrize("places", [range(3, 6), range(3), (0, 2, 5)], ids=["left", "right", "holes"])
def test_padding_changes_nothing(settings, places):
    alone = sample(settings, prompts=PROMPTS[:, :3], mask=None)
    padded, mask = np.full((6, 6), 11), np.zeros((6, 6), bool)
    padded[:, list(places)], mask[:, list(places)] = PROMPTS[:, :3], True
    samples = sample(settings, prompts=padded, mask=mask)
    np.testing.assert_array_equal(np.asarray(samples.tokens)[:, 3:], alone.tokens)
    np.testing.assert_allclose(samples.log_probs, alone.log_probs, atol=1e-5)


@pytest.mark.slow
def test_a_mask_of_ones_is_no_mask():
    assert_same(sample({}, mask=np.ones((6, 6), bool)), sample({}, mask=None))


def test_what_stands_in_the_padding_changes_no_bit():
    samples, others = (
        jax.tree.map(np.asarray, sample({}, prompts=np.where(RAGGED, PROMPTS, x))) for x in (0, 11)
    )
    np.testing.assert_array_equal(samples.tokens[:, 6:], others.tokens[:, 6:])
    np.testing.assert_array_equal(samples.log_probs, others.log_probs)


def test_align_moves_the_valid_tokens_to_the_end_in_order():
    tokens, mask = rows.align(PROMPTS, jnp.array(RAGGED))
    for row, valid, prompt, was in zip(tokens, mask, PROMPTS, RAGGED, strict=True):
        np.testing.assert_array_equal(row[6 - was.sum() :], prompt[was])
        np.testing.assert_array_equal(valid, np.arange(6) >= 6 - was.sum())


def test_the_same_key_gives_the_same_bits_and_another_key_others():
    jax.tree.map(np.testing.assert_array_equal, sample({}), sample({}))
    one, other = (np.asarray(sample({}, seed=seed).tokens)[:, 6:] for seed in (1, 2))
    assert np.mean(one != other) > 0.5


@pytest.mark.slow
def test_a_row_alone_gives_what_it_gives_among_others():
    together = sample({"greedy": True})
    for row in range(6):
        pick = slice(row, row + 1)
        alone = sample({"greedy": True}, prompts=PROMPTS[pick], mask=RAGGED[pick])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


def test_a_row_with_a_key_of_its_own_gives_the_same_text_in_every_batch():
    keys, other = jax.random.split(jax.random.key(7), 6), np.array([3, 0, 2, 2, 5, 1])
    run = lambda rows: compiled(
        keys[rows], PARAMS, PROMPTS[rows], CONFIG, NUM_TOKENS, prompt_mask=RAGGED[rows], sampling=SAMPLING
    )
    together = run(np.arange(6))
    np.testing.assert_array_equal(run(other).tokens, np.asarray(together.tokens)[other])


@pytest.mark.slow
def test_vmap_over_keys_parameters_and_temperature_equals_a_loop():
    seeds, trees, temperatures = (1, 2), (PARAMS, rough(CONFIG, seed=5)), (0.7, 1.6)

    def run(key, params, temperature):
        settings = lm.SamplingConfig(temperature=temperature, top_p=0.9, stop_token=3)
        return lm.sample(
            key, params, PROMPTS, CONFIG, NUM_TOKENS, prompt_mask=jnp.array(RAGGED), sampling=settings
        )

    over_keys = jax.vmap(run, (0, None, None))
    every = jax.vmap(jax.vmap(over_keys, (None, 0, None)), (None, None, 0))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    together = jax.jit(every)(keys, lm.stack(trees), jnp.array(temperatures))
    for i, j, k in itertools.product(range(2), repeat=3):
        settings = {"temperature": temperatures[i], "top_p": 0.9, "stop_token": 3}
        expected = sample(settings, seed=seeds[k], params=trees[j])
        assert_same(jax.tree.map(lambda leaf, at=(i, j, k): leaf[at], together), expected)


def chi_square(drawn, probabilities):
    """Pearson's statistic in standard deviations above its mean; cells rarer than 5 are merged."""
    expected = len(drawn) * probabilities
    counts = np.bincount(drawn, minlength=len(expected))
    assert (counts[expected == 0] == 0).all()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1.0))
    freedom = len(expected) - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "settings", [pytest.param({}, marks=pytest.mark.slow), {"temperature": 1.5, "top_k": 4, "top_p": 0.9}]
)
def test_two_tokens_follow_their_joint_law(settings):
    """That of all 36 continuations, multiplied out of full forward passes."""
    params, settings = rough(SMALL), lm.SamplingConfig(**settings)
    pairs = np.array(list(itertools.product(range(6), repeat=2)))
    laws = jax.jit(lambda tokens: distribution.log_probs(lm.apply(params, tokens, SMALL)[:, :2], settings))
    laws = np.exp(laws(np.insert(pairs, 0, 2, axis=1)))  # [36, 2, V]
    law = np.prod(np.take_along_axis(laws, pairs[:, :, None], axis=2), axis=(1, 2))
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-5)
    prompts = np.full((20_000, 1), 2)
    samples = compiled(jax.random.key(0), params, prompts, SMALL, 2, sampling=settings)
    drawn = np.asarray(samples.tokens)[:, 1:] @ np.array([6, 1])
    assert abs(chi_square(drawn, law)) < 4


@pytest.mark.slow
def test_eager_and_compiled_agree():
    params, prompts = rough(SMALL), PROMPTS[:, :2] % 6
    options = {"prompt_mask": jnp.array(RAGGED[:, 3:5] | [[False, True]])}
    expected = compiled(jax.random.key(0), params, prompts, SMALL, 2, **options)
    assert_same(lm.sample(jax.random.key(0), params, prompts, SMALL, 2, **options), expected)


def test_bfloat16_samples_with_log_probs_in_float32():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    run = lambda params: lm.sample(jax.random.key(1), params, PROMPTS, config, NUM_TOKENS)
    assert jax.eval_shape(run, PARAMS).log_probs.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 11}, r"17 tokens .* max_length=16: cut the prompt, sample fewer"),
        ({"num_microbatches": 4}, "num_microbatches must be a divisor of the 6 prompts, got 4"),
        ({"num_tokens": 0}, "num_tokens must be an integer ≥ 1, got 0"),
        ({"prompts": PROMPTS[0]}, r"prompts\.shape must be \[B, T\] .* got \(6,\)\. .* prompts\[None\]"),
        ({"prompts": PROMPTS[:, :0]}, r"prompts\.shape must be \[B, T\] with B, T ≥ 1, got \(6, 0\)"),
        ({"prompt_mask": RAGGED[:, 1:]}, r"prompt_mask\.shape must be \(6, 6\), the shape of prompts, got"),
        (
            {"sampling": lm.SamplingConfig(stop_token=17)},
            "stop_token must be from 0 to 16, the vocabulary, or None, got 17",
        ),
        ({"sampling": lm.SamplingConfig(stop_token=(-1, 2))}, "stop_token must be from 0 to 16"),
        ({"sampling": None}, "sampling must be a SamplingConfig"),
        (
            {"num_tokens": 3, "sampling": lm.SamplingConfig(stop_token=1, min_new_tokens=3)},
            "min_new_tokens must be less than num_tokens=3, got 3",
        ),
        ({"num_tokens": 2.0}, r"num_tokens must be an integer ≥ 1, got 2\.0"),
        ({"prompts": [[1, 2], [3]]}, r"prompts must be .* got rows of several lengths\. Pad the rows"),
        ({"prompts": PROMPTS + 12}, "prompts must be ids from 0 to 16, the vocabulary of the config, got"),
        (
            {"prompts": PROMPTS.astype(float)},
            r"prompts\.dtype must be an integer one, got dtype\('float64'\)",
        ),
        ({"prompt_mask": RAGGED.astype(float)}, r"prompt_mask\.dtype must be bool, got .* != 0"),
        ({"prompt_mask": RAGGED & (np.arange(6) != 1)[:, None]}, "prompt_mask must be True for at least one"),
        ({"key": jax.random.split(jax.random.key(0), 5)}, r"key\.shape must be \(\) or \(6,\)"),
        ({"key": 3}, r"key must be a typed key, got 3\. Make one by jax\.random\.key"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options, message):
    arguments = {"prompts": PROMPTS, "config": CONFIG, "num_tokens": NUM_TOKENS} | options
    with pytest.raises(ValueError, match=message):
        lm.sample(**{"key": jax.random.key(0), "params": PARAMS} | arguments)


def test_weights_are_cast_once_before_the_loop_over_tokens():
    config = dataclasses.replace(CONFIG, num_layers=3, width=32, compute_dtype="bfloat16", unroll=1)
    params = jax.eval_shape(lambda: lm.init(jax.random.key(0), config))
    sample = lambda params: lm.sample(jax.random.key(1), params, PROMPTS[:1], config, 4)

    def casts(jaxpr, in_loop):
        for equation in jaxpr.eqns:
            inside = in_loop or equation.primitive.name in ("while", "scan")
            if in_loop and equation.primitive.name == "convert_element_type":
                yield equation.invars[0].aval.size, equation.outvars[0].aval.dtype.name
            for value in jax.tree.leaves(list(equation.params.values())):
                if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                    yield from casts(inner, inside)

    found = set(casts(jax.make_jaxpr(sample)(params).jaxpr, False))
    assert (config.width, "bfloat16") in found  # norms, in the loop
    assert max(size for size, dtype in found if dtype == "bfloat16") < config.width**2
