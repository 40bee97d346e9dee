"""Several processes as one run: how they join, what the first decides for all, and how a fault ends all.

    srun python -m experiments.train_lm --distributed
    torchrun --nnodes 2 --node-rank 0 --master-addr host0 --no-python python -m experiments.train_lm ...
    python -m experiments.train_lm --distributed --coordinator host0:8476 --num-processes 2 --process-id 0

The first is JAX's own detection, as of MPI, Kubernetes and TPU pods; the second reads MASTER_ADDR,
MASTER_PORT, WORLD_SIZE and RANK, and JAX listens at the port after it. The mesh is data=-1 unless `--mesh`
gives another. The processes share a file system; the first alone writes. Where one ends by a fault, JAX
ends the others within half a minute.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.support import Refusal
from proxlm import settings, sharding

SILENCE = 30  # seconds without a sign of life after which a process is given up, and all with it
_ROOT = pathlib.Path(__file__).parents[3]
_LARGEST = 2**14  # bytes of what processes tell each other


class SharedRefusal(Refusal):
    """A refusal that all processes raise; the first says it."""


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run; the standard output of all but the first is dropped.

    Raises:
      Refusal: none are found, or they do not meet.
    """
    env, how = os.environ, {}
    if coordinator or num_processes or process_id >= 0:
        if not coordinator or num_processes < 1 or not 0 <= process_id < num_processes:
            raise Refusal(
                f"coordinator={coordinator!r}, num_processes={num_processes} and process_id={process_id}: "
                "expected host:port, how many there are, and which of them this is"
            )
        how = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    elif {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"} <= set(env):
        how = {
            "coordinator_address": f"{env['MASTER_ADDR']}:{int(env['MASTER_PORT']) + 1}",
            "num_processes": int(env["WORLD_SIZE"]),
            "process_id": int(env["RANK"]),
        }
        if int(env.get("LOCAL_WORLD_SIZE", "1")) > 1:
            how["local_device_ids"] = int(env["LOCAL_RANK"])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `stopping`
    try:
        jax.distributed.initialize(**how, initialization_timeout=120, heartbeat_timeout_seconds=SILENCE)
    except (ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        remedy = "give --coordinator host:port --num-processes N --process-id I"
        raise Refusal(f"distributed: the processes do not meet ({line}); {remedy}") from error
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def is_first() -> bool:
    """Whether this process writes, logs and plots."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """The value of the first process, on all of them, as JSON gives it back; none goes on before."""
    if jax.process_count() == 1:
        return value
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(_words(value))))


def decided(function: Callable[[], Any]) -> Any:
    """`function()`, run by the first process alone, on all of them; its Refusal or OSError, too."""
    if jax.process_count() == 1:
        return function()
    found = {}
    if is_first():
        try:
            found = {"value": function()}
        except (Refusal, OSError, ValueError) as error:
            found = {"error": str(error)}
    found = agreed(found)
    if "error" in found:
        raise SharedRefusal(found["error"])
    return found["value"]


def largest(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def everywhere(tree: Any) -> Any:
    """Arrays as NumPy, whole on every process."""

    def whole(x):
        if getattr(x, "is_fully_addressable", True):
            return jax.device_get(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def check_alike(*given: Any) -> None:
    """Compares the settings and the code of all processes.

    Raises:
      Refusal: some differ from those of the first.
    """
    if jax.process_count() == 1:
        return
    told = {"code": _code()}
    for part in given:
        told |= settings.plain(part)
    rows = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(_words(told))]
    for number, row in enumerate(rows):
        if found := settings.differences(rows[0], row):
            raise SharedRefusal(f"process {number} has other settings than the first: {'; '.join(found)}")


def check_divides(**batch: int) -> None:
    """Raises a Refusal for a number of rows that the devices of `--mesh` do not divide: each would do all."""
    (name, number), parts = *batch.items(), sharding.num_parts()
    if number % parts:
        raise SharedRefusal(
            f"{name}={number}: expected a multiple of {parts}, the devices that divide it by --mesh"
        )


def leave(name: str, error: BaseException) -> None:
    """Ends this process at once where it is one of several, so that the others are ended, too."""
    with contextlib.suppress(Exception):
        if jax.distributed.is_initialized():
            if is_first() or not isinstance(error, SharedRefusal):
                which = f"process {jax.process_index()} of {jax.process_count()}"
                kind = "" if isinstance(error, Refusal | OSError) else f"{type(error).__name__}: "
                print(f"{name}: {which}: {kind}{error}", file=sys.stderr, flush=True)
            if is_first():
                # JAX aborts the others when it ends, and they may be ending by the same refusal
                time.sleep(2)
            os._exit(1)


def _words(value):
    """JSON in bytes of one length."""
    text = json.dumps(value).encode()
    if len(text) > _LARGEST:
        raise ValueError(f"{len(text)} bytes are too many to tell the other processes")
    return np.frombuffer(text.ljust(_LARGEST), np.uint8)


def _code():
    """A digest of the sources."""
    digest = hashlib.sha256()
    for folder in ("proxlm", "experiments"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
