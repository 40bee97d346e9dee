"""A check whether the exact zeros that a prox makes survive in an optimizer."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.penalties import _trees
from proxlm.transforms import _arguments, _states, debiasing

__all__ = ["Verdict", "check"]

# From weights and gradients of size 1 down to where any threshold is larger than Adam's steps.
SCALES = (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13, 1e-16)
LEAST_SHARE = 0.01  # in bfloat16 some zeros come by chance

NEVER = (
    "the prox is not the last to act, or its updates are rounded below the dtype of the params, or "
    "its penalty makes none"
)
GONE = (
    "something after the prox moves them (decay, noise, momentum, a mean of params), or the "
    "optimizer steps further than the threshold however small the gradients (signs)"
)


class Verdict(NamedTuple):
    """The result of `check`; `print` shows it in words.

    Attributes:
      kept: the largest share of weights, over the sizes tried, that were zero in the second half of
        the updates and are zero at the end.
      born: the largest share that was zero after any one update.
      harms: parts of the optimizer that are known to lose zeros.
      remarks: parts that may lose them.
    """

    kept: float
    born: float
    harms: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if zeros arise and stay, and no part of the optimizer is known to lose them."""
        return self.kept >= LEAST_SHARE and not self.harms

    def __str__(self) -> str:
        """The verdict in a line, and a line for each harm and remark."""
        if self.passed:
            first = f"zeros survive: {self.kept:.0%} of the weights"
        elif self.kept >= LEAST_SHARE:
            first = f"zeros survived here ({self.kept:.0%} of the weights), but will be lost"
        elif self.born >= LEAST_SHARE:
            first = f"zeros come ({self.born:.0%} of the weights) and go: {GONE}"
        else:
            first = f"no zeros: {NEVER}"
        return "\n".join([first, *(f"- {line}" for line in self.harms + self.remarks)])


def check(
    optimizer: optax.GradientTransformation,
    params: chex.ArrayTree,
    *,
    steps: int = 24,
    view: Callable[[Any, chex.ArrayTree], chex.ArrayTree] | None = None,
    seed: int = 0,
    **extra_args: Any,
) -> Verdict:
    """Checks whether the exact zeros that a prox makes survive in an optimizer.

    It trains weights of the given shapes with gradients of noise, both small enough for any
    threshold, over sizes from 1 to 1e-16, and counts exact zeros. It sees what follows the prox
    (decay, noise, a learning rate), what rescales its update (mechanize), what rounds it below the
    dtype of the params, and, through `view`, means of params. By the types in the state it names
    what is known to harm, also where zeros survive here: `schedule_free` loses most of them only
    while weights are moving; and a learning rate that a link finds for itself is not the one by
    which `apply_prox` was told to threshold.

    It is for penalties that make zeros, and it does not see changes of the params outside the optimizer.

    Args:
      params: a tree; only its shapes and dtypes matter. A small one will do.
      steps: updates to try: a ramp must have begun by then, a warm-up ended with a rate above 0, and an
        `every` be at most a quarter of it.
      view: (optimizer's state, params) ↦ the params that are used in the end, such as
        `optax.contrib.schedule_free_eval_params`; None takes them as they are.
      seed: of the noise.
      **extra_args: handed to the optimizer, besides approx_kl=0.

    Returns:
      A `Verdict`: `verdict.passed` is a bool, `print(verdict)` shows the reasons.

    Raises:
      ValueError: if the optimizer is not a transformation, steps is not an integer ≥ 4, or params have no
        real weights.

    >>> from proxlm import penalties
    >>> from proxlm.transforms import apply_prox
    >>> prox = apply_prox(penalties.l1(0.1), 1e-3)
    >>> print(check(optax.chain(optax.sgd(1e-3), prox), jnp.ones(8)))
    zeros survive: 100% of the weights
    >>> check(optax.chain(optax.scale_by_adam(), prox, optax.scale(-1e-3)), jnp.ones(8)).passed
    False
    """
    _arguments.require_link("check", "optimizer", optimizer)
    _arguments.require_count("check", "steps", steps, least=4)
    _validation.to_int(0, "check", seed=seed)
    wide = _trees.widen("check", params)
    if not sum(leaf.size for leaf in jax.tree.leaves(wide)):
        raise ValueError("check: params have no weights. Give a tree like those you train.")
    optimizer = optax.with_extra_args_support(optimizer)
    extra_args = {"approx_kl": 0.0} | extra_args
    view = view or (lambda state, params: params)

    def run(scale):
        noise = lambda key: _noise(key, params, scale)

        def advance(turn, params, state):
            updates, state = optimizer.update(noise(turn[1]), state, params, **extra_args)
            return optax.apply_updates(params, updates), state

        return _count(optimizer, noise(jax.random.key(seed)), advance, view, steps, seed)

    kept, born = jax.jit(lambda scales: jax.lax.map(run, scales))(jnp.array(SCALES))
    state = jax.eval_shape(optimizer.init, params)
    harms = [*_harms(state), *_rounded(optimizer, state, params, extra_args)]
    found = (tuple(dict.fromkeys(lines)) for lines in (harms, _remarks(state)))
    return Verdict(float(jnp.max(kept)), float(jnp.max(born)), *found)


def _count(optimizer, start, advance, view, steps, seed):
    """Shares of the weights that are zero: at the end as in the half before, and at most."""
    sizes = lambda state, params: jnp.concatenate(
        [jnp.abs(leaf).ravel().astype(jnp.float32) for leaf in jax.tree.leaves(view(state, params))]
    )

    def body(carry, turn):
        params, state, before, killed, hits = carry
        params, state = advance(turn, params, state)
        now = sizes(state, params)
        # What shrinks a thousandfold at each update is 0 in the end, too, but that is no prox.
        killed = killed | ((now == 0) & (before > 0.01 * typical))
        dead = killed & (now == 0)
        hits = hits + (dead & (turn[0] >= steps // 2))
        return (params, state, now, killed, hits), jnp.mean(dead, dtype=jnp.float32)

    state = optimizer.init(start)
    first = sizes(state, start)
    typical = jnp.median(first)
    carry = start, state, first, first < 0, jnp.zeros(first.shape, jnp.int32)
    turns = jnp.arange(steps), jax.random.split(jax.random.key(seed + 1), steps)
    (*_, last, killed, hits), shares = jax.lax.scan(body, carry, turns)
    return jnp.mean((last == 0) & killed & (hits > 1), dtype=jnp.float32), jnp.max(shares)


def _noise(key, like, scale):
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draw = lambda key, leaf: (scale * jax.random.normal(key, jnp.shape(leaf))).astype(leaf.dtype)
    return jax.tree.unflatten(structure, list(map(draw, keys, leaves)))


def _rounded(optimizer, state, params, extra_args):
    """Yields a line if updates have fewer bits than the params they are added to."""
    update = lambda params, state: optimizer.update(params, state, params, **extra_args)[0]
    updates = jax.eval_shape(update, params, state)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    for u, p in pairs:
        if jnp.finfo(u.dtype).nmant < jnp.finfo(p.dtype).nmant:
            yield f"updates come in {u.dtype}, which rounds away the zeros of {p.dtype} params"


def _harms(state):
    for node in _nodes(state):
        for kind, words in _states.AVERAGES.items():
            if isinstance(node, kind) and _states.makers(node):
                yield f"{words}: exact zeros are lost while weights move"


def _remarks(state):
    for node in _nodes(state):
        if isinstance(node, _states.OWN_STEPS) and _states.makers(state):
            yield f"{type(node).__name__}: what sets the learning rate, the threshold does not follow"
        if type(node) is tuple:
            yield from _followers(node)


def _followers(chain):
    """Yields a line if links come after the one that makes zeros."""
    places = [i for i, node in enumerate(chain) if _states.makers(node)]
    freezes = lambda node: isinstance(node, debiasing.DebiasState) and node.inner == ()
    if places and not all(map(freezes, chain[places[-1] + 1 :])):
        yield (
            f"link {places[-1] + 1} of {len(chain)} makes the zeros: what follows may move them, "
            "so put it last"
        )


def _nodes(state: Any) -> Iterator[Any]:
    """Walks a state: tuples, named ones included, lists and dicts."""
    yield state
    inside = state.values() if isinstance(state, dict) else state
    if isinstance(state, (tuple, list, dict)):
        for node in inside:
            yield from _nodes(node)
