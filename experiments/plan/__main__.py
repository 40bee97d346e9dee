"""Whether a run of policy optimisation fits devices that are not there, and what bounds it.

    python -m experiments.plan --model llama-8b --mesh data=8,fsdp=8 --responses 256 --tokens 1280

The two programs of an iteration, sampling and learning, are compiled for abstract arrays on as many
devices of the CPU as the mesh has: nothing is computed and no weight exists.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.plan import known, programs
from experiments.support import Refusal
from experiments.support.models import trained_part
from experiments.support.run import cli, configs, tables
from proxlm import _validation, lm, sharding
from proxlm.lm import _chunks
from proxlm.policy import ppo, recipes

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    model: str = "llama-8b"  # one of experiments.plan.known.MODELS
    mesh: str = "data=8,fsdp=8"  # axes and their sizes; as many devices are made
    chips: tuple[str, ...] = ("h100", "h200", "v5e")  # of experiments.plan.known.CHIPS
    responses: int = 256  # of an iteration
    tokens: int = 1280  # of a row, prompt and answer
    prompt: int = 256  # tokens of it
    group: int = 8  # answers to a prompt
    recipe: str = "grpo"  # one of proxlm.policy.recipes
    train: str = "all"  # or lora:8, last:6, as in experiments.reinforce
    dtype: str = "bfloat16"  # of activations; weights are float32
    microbatches: int = 1  # in which it learns
    sampling: int = 1  # slices of the prompts, sampled one after another

    def validate(self) -> None:
        configs.check_choices(self, recipe=recipes.RECIPES, model=known.MODELS)
        for chip in self.chips:
            _validation.one_of(known.CHIPS, chips=chip)
        configs.check_multiples(self, responses=self.group * self.sampling)
        _validation.at_least(self.prompt + 1, remedy="An answer has tokens, too.", tokens=self.tokens)


class Program(NamedTuple):
    """One program on one device: GiB of what it is given, and of what it makes, and its work."""

    given: float
    made: float
    work: programs.Work


class Plan(NamedTuple):
    """GiB on a device by what they hold, its programs, and the number of devices."""

    state: float
    cache: float
    logits: float
    programs: dict[str, Program]
    devices: int

    @property
    def peak(self) -> float:
        """The most that is held at once; the state is held also while sampling."""
        return max(self.state + program.made for program in self.programs.values())


def mesh_of(text: str) -> jax.sharding.Mesh:
    """A mesh of devices of the CPU, made where JAX has not started."""
    count = math.prod(map(int, re.findall(r"=(\d+)", text)))
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # it has started
    if len(jax.devices()) < count:
        raise Refusal(f"mesh: {text} has {count} devices, of which JAX made {len(jax.devices())}")
    try:
        return sharding.make_mesh(text, jax.devices()[:count])
    except ValueError as error:
        raise Refusal(str(error)) from error


def parts_of(config: Config) -> tuple[Any, Any, Any, lm.ModelConfig]:
    """Sampling and learning, each of what is frozen first, what starts them, and the model."""
    settings = recipes.make(config.recipe).replace(
        num_epochs=1, num_minibatches=1, num_microbatches=config.microbatches
    )
    settings = settings.replace(group_size=config.group) if settings.group_size > 1 else settings
    model = known.config_of(config.model, config.tokens, config.dtype, settings.value is not None)
    choice, answer = trained_part.parse(config.train), config.tokens - config.prompt
    optimizer = choice.adam(1e-5)
    whole = lm.make_actor(
        model, answer, critic=None if model.value_head else False, num_microbatches=config.sampling
    )
    halves = lambda frozen: ppo.make_collect_and_learn(
        lm.trainable.make_actor(whole, frozen), optimizer, settings
    )

    def start(key):
        trained, frozen = choice.split(key, lm.init(key, model))
        return frozen, ppo.init({"policy": trained}, optimizer, settings)

    return lambda f, *args: halves(f)[0](*args), lambda f, *args: halves(f)[1](*args), start, model


def compiled(config: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The two programs by their names, and the abstract state of the run."""
    collect, learn, start, model = parts_of(config)
    with jax.set_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = abstract(jax.eval_shape(start, key), lambda tree: sharding.shardings(tree, mesh))
        size = config.responses // config.group if has_groups(config) else config.responses
        tokens: Any = jax.ShapeDtypeStruct((size, config.prompt), jnp.int32)
        prompts = lm.Prompts(tokens)
        samples = jax.eval_shape(collect, *state, key, prompts)
        rows = jax.NamedSharding(mesh, jax.P(tuple(a for a in ("data", "fsdp") if a in mesh.axis_names)))
        if config.responses % sharding.num_parts():
            rows = jax.NamedSharding(mesh, jax.P())
        samples = abstract(samples, lambda tree: jax.tree.map(lambda x: rows, tree))
        rewards = jax.ShapeDtypeStruct((samples.tokens.shape[0],), jnp.float32)
        options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
        lowered = {
            "sampling": jax.jit(collect).lower(*state, key, prompts),
            "learning": jax.jit(learn, donate_argnums=1).lower(*state, key, samples, rewards),
        }
        found = {name: one.compile(compiler_options=options) for name, one in lowered.items()}
    return found | {"state": state, "model": model}


def has_groups(config: Config) -> bool:
    """Whether the recipe compares the answers to one prompt."""
    return recipes.make(config.recipe).group_size > 1


def abstract(tree: Any, places: Any) -> Any:
    """Shapes with the shardings of `places(tree)`."""
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.tree.map(place, tree, places(tree))


def plan(config: Config) -> Plan:
    """Compiles the programs and reads what they need."""
    mesh = mesh_of(config.mesh)
    found = compiled(config, mesh)
    state, model = found.pop("state"), found.pop("model")
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    with jax.set_mesh(mesh):
        parts = sharding.num_parts()
    rows = config.responses / parts / config.sampling
    heads = mesh.shape.get("model", 1) if model.num_kv_heads % mesh.shape.get("model", 1) == 0 else 1
    numbers = 2 * model.num_layers * rows * config.tokens * model.num_kv_heads * model.head_width / heads
    cache = numbers * jnp.dtype(config.dtype).itemsize
    answers = config.responses / parts / config.microbatches * (config.tokens - config.prompt)
    logits = answers * model.vocab_size
    logits = 4 * (logits if logits <= _chunks.LARGE else _chunks.CHUNK)
    of = {name: program_of(one) for name, one in found.items()}
    return Plan(held / GIB, cache / GIB, logits / GIB, of, mesh.size)


def program_of(one: Any) -> Program:
    """Memory and work of a compiled program."""
    memory = one.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Program(memory.argument_size_in_bytes / GIB, made / GIB, programs.work(one.as_text()))


def seconds(program: Program, chip: known.Chip, itemsize: int) -> dict[str, float]:
    """Seconds that a program takes at least, by what bounds it."""
    moved = program.work.product_bytes * itemsize / 4 + 2 * program.given * GIB
    return {
        "products": program.work.flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "links": sum(program.work.sent.values()) / chip.link,
    }


def remedies(config: Config, found: Plan, memory: float) -> str:
    """Options by which it would fit into so many GiB a device: powers of two, by proportion."""
    if found.peak <= memory:
        return "fits"
    if found.state > 0.8 * memory:
        factor = 2 ** math.ceil(math.log2(found.state / (0.5 * memory)))
        lora = "" if config.train.startswith("lora") else ", or --train lora:8"
        return f"the state alone is {found.state:.0f} GiB: {factor} times the devices on fsdp{lora}"
    free, words = memory - found.state, []
    for name, option, now in (
        ("sampling", "sampling", config.sampling),
        ("learning", "microbatches", config.microbatches),
    ):
        if (made := found.programs[name].made) > free:
            words.append(f"--{option} {now * 2 ** math.ceil(math.log2(made / free))}")
    return "try " + " ".join(words)


def report(config: Config, found: Plan) -> str:
    """The tables."""
    itemsize = jnp.dtype(config.dtype).itemsize
    rows, bounds = [], []
    for name, program in found.programs.items():
        part = found.cache if name == "sampling" else found.logits
        kind = "cache" if name == "sampling" else "logits"
        sent = sum(program.work.sent.values())
        work = [program.work.flops / 1e12, program.work.product_bytes * itemsize / 4 / GIB, sent / GIB]
        rows.append([name, found.state, program.made, f"{kind} {part:.2f}", *work])
    for chip in config.chips:
        times = {name: seconds(p, known.CHIPS[chip], itemsize) for name, p in found.programs.items()}
        words = [f"{max(own.values()):.3g} s, {max(own, key=own.__getitem__)}" for own in times.values()]
        memory = known.CHIPS[chip].memory
        bounds.append([chip, *words, f"{found.peak:.1f} of {memory:.0f}", remedies(config, found, memory)])
    headers = ["of one device", "state, GiB", "beside it", "of that", "Tflop", "moved, GiB", "sent, GiB"]
    head = f"{config.model} over {config.mesh}; {config.responses} rows of {config.tokens} tokens"
    names = [f"{name}, at least" for name in found.programs]
    return "\n\n".join(
        [head, tables.table(rows, headers), tables.table(bounds, ["chip", *names, "GiB", "verdict"])]
    )


def main(config: Config) -> None:
    """Prints the tables."""
    print(report(config, plan(config)))


if __name__ == "__main__":
    cli.call(main, "plan", __doc__)
