"""Shortest paths: graphs, walks, their optimality, and the experiment that learns them."""

import jax
import numpy as np
import pytest

from experiments import randomwalks
from experiments.support.randomwalks import graphs
from experiments.support.run import runs
from tests.experiments.starting import start
from tests.policy.table_actor import compiled

OPTIMALITY = compiled(jax.vmap(graphs.optimality, (0, None, None)))


def test_distances_are_those_of_floyd_and_warshall():
    rng = np.random.default_rng(0)
    edges = rng.random((20, 20)) < 0.07
    expected = np.where(edges, 1.0, np.inf)
    np.fill_diagonal(expected, 0.0)
    for middle in range(20):
        through = expected[:, middle, None] + expected[None, middle]
        expected = np.minimum(expected, through)
    found = graphs.distances(edges)
    np.testing.assert_array_equal(found, expected[:, graphs.GOAL])
    assert np.isinf(found).any() and found.max(where=np.isfinite(found), initial=0) > 2


def test_graphs_lead_to_the_goal_and_walks_keep_to_their_edges():
    rng = np.random.default_rng(1)
    graph = graphs.draw(rng, nodes=21, probability=0.1, longest=10)
    assert graph.shortest[graphs.GOAL] == 1 and graph.shortest.max() < 10
    walks = graphs.walks(rng, graph, 200, 10)
    here, there = walks[:, :-1], walks[:, 1:]
    assert graph.edges[here, there][here != graphs.GOAL].all()
    assert (there[here == graphs.GOAL] == graphs.GOAL).all() and (walks[:, 0] > 0).all()
    assert set(walks[:, 0]) == set(range(1, 21))


def test_optimality_is_1_for_the_shortest_and_0_for_walks_that_do_not_arrive():
    # 3 -> 2 -> 1 -> 0 and 3 -> 1
    edges = np.zeros((4, 4), bool)
    edges[[3, 2, 1, 3], [2, 1, 0, 1]] = True
    shortest = graphs.distances(edges) + 1
    assert shortest.tolist() == [1, 2, 3, 3]
    walks = np.array(
        [
            [3, 1, 0, 0, 0],  # the shortest, 3 nodes
            [3, 2, 1, 0, 2],  # 4 nodes, then anything
            [3, 0, 0, 0, 0],  # no such edge
            [3, 2, 1, 3, 1],  # an edge that is not there, and no goal
            [1, 0, 3, 3, 3],
        ]
    )
    assert OPTIMALITY(walks, edges, shortest).tolist() == [1.0, 0.5, 0.0, 0.0, 1.0]


def test_a_goal_that_cannot_be_reached_is_said():
    with pytest.raises(ValueError, match="none of 10,000 graphs lets every node reach the goal"):
        graphs.draw(np.random.default_rng(0), nodes=4, probability=1e-9, longest=4)


def test_only_the_method_with_a_critic_pays_for_leaving_the_walks_it_imitated():
    settings = {name: randomwalks.settings_of(name) for name in ("ppo", "rloo", "grpo")}
    assert [x.kl.coef for x in settings.values()] == [0.05, 0.0, 0.0]
    assert settings["ppo"].value.coef == 1.0


@pytest.mark.slow
def test_the_smoke_run_judges_every_policy_between_no_arrival_and_the_optimum(tmp_path):
    numbers = start(randomwalks, options=runs.Options(smoke=True, runs=str(tmp_path)))
    assert numbers.keys() == {"imitation", "grpo"}
    assert all(0.0 < x <= 1.0 for values in numbers.values() for x in values)
    (folder,) = (tmp_path / "randomwalks").iterdir()
    assert {"curves.png", "report.txt", "numbers.json"} <= {x.name for x in folder.iterdir()}
