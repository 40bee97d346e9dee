"""The picture of the two halves: the proximal step of weights and of a policy, as computed by proxlm."""

import io
import re

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.figure
import numpy as np

from proxlm import penalties
from proxlm.policy import mirror_descent

INK, WARM, GREY = "#1f4e79", "#c8553d", "#8a8a8a"
FAR, GOAL = {"color": "#d4d4d4", "linewidth": 0.9}, {"color": "#e9c4bb", "linewidth": 1.1}
PATH = {"color": INK, "linewidth": 2.2, "marker": "o", "markersize": 3.5, "markevery": 5}
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def svg() -> str:
    """The picture as a figure element of HTML."""
    figure = matplotlib.figure.Figure(figsize=(9.6, 3.4), layout="constrained")
    weights, policy = figure.subplots(1, 2)
    for axis, title, formula in (
        (weights, "Parameter space", "prox_tg(x) = argmin_z  g(z) + |z − x|² / 2t"),
        (policy, "Policy space", "argmax_π  E[reward] − KL(π‖π_old) / t"),
    ):
        axis.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold", color=INK)
        axis.text(0, 1.02, formula, transform=axis.transAxes, fontsize=11, color="#333333")
        axis.set_axis_off()
        axis.set_aspect("equal")
    _draw_weights(weights)
    _draw_policy(policy)
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "proxlm", "font.family": "sans-serif"}
    ):
        figure.savefig(text := io.StringIO(), format="svg", metadata={"Date": None})
    size = r'width="[\d.]+pt" height="[\d.]+pt"'
    drawn = re.sub(size, 'width="100%" id="halves" role="img"', text.getvalue(), count=1)
    return f"<figure>{drawn[drawn.index('<svg') :]}</figure>"


def _draw_weights(axis):
    """Prox of ℓ1 for growing t: diagonal, until a weight is exactly zero."""
    x, times = jnp.array([1.25, 0.6]), jnp.linspace(0.0, 1.25, 26)
    path = np.array(jax.vmap(lambda t: penalties.l1(1.0).prox(x, t))(times))
    turn = np.linspace(0, 2 * np.pi, 200)
    for radius in (0.25, 0.5, 0.75, 1.0):
        axis.plot(x[0] + radius * np.cos(turn), x[1] + radius * np.sin(turn), **FAR)
    for size in (0.4, 0.8, 1.2):
        axis.plot([-size, 0, size, 0, -size], [0, size, 0, -size, 0], **GOAL)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.plot(*path.T, **PATH)
    axis.plot(*x, "o", color=WARM, markersize=8)
    _say(axis, "x, the weights\nbefore the step", x, WARM, (9, 6))
    _say(axis, "one weight is\nexactly zero", (0.65, 0), INK, (-4, -34))
    _say(axis, "level sets of g = ℓ1", (-0.85, 0.95), "#b5705f")
    _say(axis, "level sets of the distance", (0.55, 1.5), GREY)
    axis.set_xlim(-0.9, 2.4)
    axis.set_ylim(-0.65, 1.65)


def _draw_policy(axis):
    """The KL-regularised step for growing t, from the old policy to the best of three answers."""
    old, reward = jnp.array([0.55, 0.3, 0.15]), jnp.array([0.0, 0.35, 1.0])
    step = lambda t: jnp.exp(mirror_descent.proximal_step(reward, jnp.log(old), step_size=t))
    path = np.array(jax.vmap(step)(jnp.geomspace(1e-3, 12.0, 41))) @ CORNERS
    axis.plot(*CORNERS[[0, 1, 2, 0]].T, color=GREY, linewidth=1.2)
    a, b = np.meshgrid(*2 * [np.linspace(0.002, 0.998, 160)])
    inside = a + b < 0.998
    grid = np.stack([a, b, 1 - a - b], axis=-1)[inside]
    divergence = np.sum(grid * np.log(grid / np.array(old)), axis=1)
    axis.tricontour(*(grid @ CORNERS).T, divergence, [0.03, 0.12, 0.3, 0.6, 1.0, 1.5], colors=FAR["color"])
    axis.tricontour(*(grid @ CORNERS).T, grid @ np.array(reward), 6, colors=GOAL["color"])
    axis.plot(*path.T, **PATH)
    axis.plot(*path[0], "o", color=WARM, markersize=8)
    _say(axis, "π_old", path[0], WARM, (-8, -18))
    _say(axis, "level sets of KL(π‖π_old)", (0.8, 0.55), GREY)
    _say(axis, "level sets of the reward", (0.86, 0.44), "#b5705f")
    _say(axis, "answer A", CORNERS[0], "#333333", (-30, -16))
    _say(axis, "answer B", CORNERS[1], "#333333", (-20, -16))
    _say(axis, "answer C, the best", CORNERS[2], "#333333", (8, 0))
    axis.set_xlim(-0.2, 1.5)
    axis.set_ylim(-0.12, 0.95)


def _say(axis, text, place, colour, offset=(0, 0)):
    axis.annotate(text, place, offset, textcoords="offset points", fontsize=10, color=colour)
