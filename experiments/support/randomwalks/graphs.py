"""Random graphs with a goal, walks on them, and how near a walk comes to the shortest.

The benchmark of trlX (CarperAI 2022, `examples/randomwalks`): 21 nodes, every edge with probability
0.1, walks of at most 10 nodes towards node 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support import Refusal

GOAL = 0


class Graph(NamedTuple):
    """Directed edges bool `[N, N]`, and nodes on the shortest path to the goal, int `[N]`."""

    edges: Any
    shortest: Any


def draw(rng: np.random.Generator, nodes: int, probability: float, longest: int) -> Graph:
    """A graph in which a walk of fewer than `longest` nodes reaches the goal from every node."""
    for _ in range(10_000):
        edges = rng.random((nodes, nodes)) < probability
        np.fill_diagonal(edges, False)
        edges[GOAL] = False
        shortest = distances(edges) + 1
        if np.all(shortest < longest):
            return Graph(edges, shortest.astype(np.int32))
    raise Refusal(
        f"nodes={nodes}, probability={probability}, longest={longest}: none of 10,000 graphs lets "
        "every node reach the goal; expected more edges or longer walks"
    )


def distances(edges: np.ndarray) -> np.ndarray:
    """Edges on the shortest path from each node to the goal, by breadth-first search."""
    found = np.full(len(edges), np.inf)
    front, distance = np.arange(len(edges)) == GOAL, 0
    while front.any():
        found[front] = distance
        front, distance = edges[:, front].any(axis=1) & np.isinf(found), distance + 1
    return found


def walks(rng: np.random.Generator, graph: Graph, count: int, longest: int) -> np.ndarray:
    """Random walks from random nodes, int `[count, longest]`: GOAL fills what follows the goal.

    A walk ends at the goal or where it is cut; from a node without an edge there is none.
    """
    rows = np.zeros((count, longest), np.int32)
    rows[:, 0] = rng.integers(1, len(graph.edges), count)
    for step in range(1, longest):
        at = rows[:, step - 1]
        chances = rng.random((count, len(graph.edges))) * graph.edges[at]
        rows[:, step] = np.where(at == GOAL, GOAL, np.argmax(chances, axis=1))
    return rows


def optimality(walk: jax.Array, edges: Any, shortest: Any) -> jax.Array:
    """(L - l) / (L - l*) of a walk `[L]`: 1 for the shortest path, 0 if it does not arrive.

    l nodes lead to the goal, l* on the shortest path. A step where there is no edge arrives
    nowhere; what follows the goal is free.
    """
    longest = len(walk)
    arrived = walk == GOAL
    length = jnp.where(jnp.any(arrived), jnp.argmax(arrived) + 1, longest)
    broken = ~edges[walk[:-1], walk[1:]] & (jnp.arange(1, longest) < length)
    length = jnp.where(jnp.any(broken), longest, length)
    return (longest - length) / (longest - shortest[walk[0]])
