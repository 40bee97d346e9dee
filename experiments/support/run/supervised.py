"""Supervised training with progress, metrics and checkpoints, and the resumable loop beneath it."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.run import processes, runs, stages, tables
from proxlm import checkpoint, lm, training


def epochs(seed: int, size: int, batch: int, steps: int) -> np.ndarray:
    """Row numbers `[steps, batch]`: every row once before any row again, shuffled each time."""
    if not 1 <= batch <= size:
        raise ValueError(f"batch={batch}: expected 1 to {size}, the number of windows there are")
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(size) for _ in range(-(-steps * batch // size))]
    return np.concatenate(passes)[: steps * batch].reshape(steps, batch).astype(np.int32)


def fit(
    run: runs.Run,
    name: str,
    loss_fn: Callable,
    optimizer: Any,
    params: Any,
    data: Any,
    rows: np.ndarray,
    *,
    evaluate: Callable[[Any], dict[str, Any]],
    chunk: int,
    evaluate_every: int,
    patience: int = 0,
    fixed: Mapping[str, Any] = {},
) -> training.TrainState:
    """Minimises loss_fn(params, batch, **fixed) over the batches data[rows[i]], `chunk` steps a call.

    Logs the mean loss of each call and, every so many calls and after the last, the numbers of
    `evaluate(params)`; then it also saves. A killed fit resumes from there, to the same bits.
    With a patience it ends after so many evaluations without a better "held_out_loss", and gives
    the best params, in the last state.
    """
    processes.check_divides(batch=rows.shape[1])
    num_chunks = count_chunks(len(rows), chunk)
    if patience < 0:
        raise ValueError(f"patience={patience}: expected at least 0, which takes all steps")

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state, data, fixed, rows):
        step = training.make_step(functools.partial(loss_fn, **fixed), optimizer)
        body = lambda state, batch: step(state, jax.tree.map(lambda x: x[batch], data))
        return jax.lax.scan(body, state, rows)

    data, first = jax.device_put(data), _counted(chunk)

    def run_chunk(state, _):
        # The batches follow from the step, so that a resumed fit goes on with those still to come.
        start = first(state.step)
        state, metrics = advance(state, data, fixed, rows[start : start + chunk])
        numbers = {"loss": jnp.mean(metrics.loss), "grad_norm": jnp.mean(metrics.grad_norm)}
        index = start // chunk + 1
        if index % evaluate_every == 0 or index == num_chunks:
            numbers |= evaluate(state.params)
        return state, [numbers]

    state = jax.jit(training.init, static_argnums=1)(jax.tree.map(jnp.copy, params), optimizer)
    options = {"key": jax.random.key(0), "every": evaluate_every}
    if not patience:
        return run_resumable(run, name, run_chunk, state, num_chunks, chunk, **options)
    run_chunk, start = until_stalled(run_chunk, patience), (state, training.init_best_params(params))
    state, best = run_resumable(run, name, run_chunk, start, num_chunks, chunk, **options)
    return state._replace(params=best.params)


def count_chunks(steps: int, chunk: int) -> int:
    """The number of chunks that the steps fill; ValueError where they do not fill the last one."""
    if steps % chunk:
        raise ValueError(f"{steps} steps are not a multiple of chunk={chunk}")
    return steps // chunk


def fit_stage(
    run: runs.Run,
    name: str,
    settings: dict[str, Any],
    loss_fn: Callable,
    optimizer: Any,
    start: Any,
    draw: Callable[[], tuple[Any, np.ndarray]],
    depends_on: Sequence[stages.Stage] = (),
    **options: Any,
) -> tuple[Any, stages.Stage]:
    """`fit` on `draw()`, data and rows, as a stage that runs of the same settings share; its params.

    What the stage logs is copied into the log of every run that uses it.
    """

    def compute(folder):
        own = dataclasses.replace(run, path=folder, config=settings, tracker=None)
        save_params(folder, fit(own, name, loss_fn, optimizer, start, *draw(), **options).params, settings)

    stage = stages.stage(run, name, settings, compute, depends_on)
    lines = runs.read_log(dataclasses.replace(run, path=stage.path), name)
    for line in lines[len(runs.read_log(run, name)) :]:
        runs.log(run, **line)
    return stages.restore(stage.path / "params", start, settings), stage


def in_order(steps: int, batch: int) -> np.ndarray:
    """Row numbers `[steps, batch]` of data that is drawn in the order in which it is learnt."""
    return np.arange(steps * batch, dtype=np.int32).reshape(steps, batch)


def until_stalled(run_chunk: Callable, patience: int) -> Callable:
    """Wraps `run_chunk` for early stopping, from (state, best) to (state, best).

    After so many evaluations without a better loss the remaining chunks change nothing, also those
    of a run that is resumed.
    """

    def watched(carry, key):
        state, best = carry
        if best.waited >= patience:
            return carry, []
        state, lines = run_chunk(state, key)
        if "held_out_loss" in lines[-1]:
            held_out_loss = lines[-1]["held_out_loss"]
            best = training.update_best_params(best, state.params, held_out_loss, state.step)
        return (state, best), lines

    return watched


def make_fit_lanes(loss_fn: Callable, chain: Callable[[Any], Any], chunk: int) -> Callable:
    """`fit(run, name, lanes, start, batches) -> params`, one for each lane.

    All lanes start from the same params and see the same batches, in one vmap, each by the
    optimizer chain(lane). What is compiled serves all calls, as for several seeds.
    """

    def advance(lane, state, batches):
        return jax.lax.scan(training.make_step(loss_fn, chain(lane)), state, batches)

    begin = jax.jit(jax.vmap(lambda lane, start: training.init(start, chain(lane)), (0, None)))
    advance = jax.jit(jax.vmap(advance, (0, 0, None)), donate_argnums=1)

    def fit(run, name, lanes, start, batches):
        count, first = count_chunks(len(batches), chunk), _counted(chunk)

        def run_chunk(state, _):
            start = first(state.step[0])
            state, metrics = advance(lanes, state, batches[start : start + chunk])
            return state, [{"loss": jnp.mean(metrics.loss, axis=1)}]

        options = {"key": jax.random.key(0), "every": count}
        return run_resumable(run, name, run_chunk, begin(lanes, start), count, chunk, **options).params

    return fit


def _counted(chunk):
    """A function that reads a step once, then adds a chunk: reading would wait for the chunk before."""
    known = []

    def step(array):
        known.append(known.pop() + chunk if known else int(array))
        return known[0]

    return step


def run_resumable(
    run: runs.Run,
    name: str,
    run_chunk: Callable[[Any, jax.Array], tuple[Any, list[dict[str, Any]]]],
    state: Any,
    num_chunks: int,
    chunk: int,
    *,
    key: jax.Array,
    every: int,
    shown: Sequence[str] = (),
) -> Any:
    """Does the chunks of `stages.run_chunks` still to come, each of `chunk` steps, in view.

    `run_chunk(state, key)` gives the numbers of a chunk as lines for the log, one a step or one
    for all; the progress shows the last of them, those `shown` or all, as means over seeds. No
    lines come of a run that has stopped early and passes its remaining chunks by.
    """
    folder = run.path / "fit" / re.sub(r"\W+", "-", name)
    first = stages.first_chunk(folder)
    runs.truncate_log(run, name, first * chunk + 1)
    with tables.progress(num_chunks, name, completed=first) as show:

        def on_chunk(index, lines):
            for i, numbers in enumerate(lines, start=1):
                step = index * chunk + i * chunk // len(lines)
                runs.log(run, name, step=step, **numbers)
            last = lines[-1] if lines else {}
            show(**{name: np.mean(last[name]) for name in last and (shown or last)})

        saving = {"checkpoint_folder": folder, "config": run.config, "every": every}
        return stages.run_chunks(run_chunk, state, num_chunks, key=key, on_chunk=on_chunk, **saving)


def save_params(folder: pathlib.Path, params: Any, config: Any) -> None:
    """Writes the parameters that a finished stage hands on."""
    if processes.agreed(checkpoint.latest(folder / "params")) is None:
        stages.save(folder / "params", 1, params, config)


def load_params(folder: pathlib.Path, model: lm.ModelConfig, config: Any) -> Any:
    """The parameters that `save_params` wrote, of a model of this shape."""
    like = jax.eval_shape(functools.partial(lm.init, config=model), jax.random.key(0))
    return stages.restore(folder / "params", like, config)
