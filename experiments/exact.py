"""Policy gradients without sampling: 31 sentences, and every expectation a finite sum.

    python -m experiments.exact            # bias, noise and sub-optimality of the whole family

2 CPU cores (AMD EPYC, 2.6 GHz), 33 s, exact in float64. Unbiased: leave-one-out and k1 in the
reward (bias 1e-15); the direction of GRPO is 0.951 of the truth's, k1 in the loss has none. Of the
KL-regularised objective the exact proximal step leaves 1.6e-10 after 30 iterations, PPO's clip with
a perfect critic 1.1e-2. Adam's steps are the same for all, so the curves compare directions and
fixed points, not scales.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.exact import report
from experiments.support.run import cached_results, cli, configs, runs
from proxlm import _validation
from proxlm.policy import losses, partial, recipes, tabular

# Groups of 2 have no covariance to rank, no clip within one step, no answer that is best of 4.
ALGORITHMS = tuple(
    "reinforce ppo vapo rloo opo dr_grpo reinforce++_baseline grpo "
    "dapo gspo luspo gmpo cispo sapo topr vespo".split()
)
MOST_GROUPS = 100_000  # of sentences, each a term of every expectation
# Name ↦ where a KL is put, and its estimator.
PLACEMENTS = {
    f"{estimator} in the {place}": (place, estimator)
    for place, estimators in {"reward": ("k1", "k2", "k3"), "loss": ("k1", "k2", "k3", "k3+")}.items()
    for estimator in (*estimators, "exact")
}


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    vocab_size: int = configs.field(3, smoke=2)  # tokens, the one that ends a sentence among them
    length: int = configs.field(4, smoke=2)  # of the longest sentence; token 0 ends one
    group_size: int = 2  # sentences per prompt: 496 groups of 2, 5456 of 3
    kl_coef: float = 0.2  # β, the weight of the KL in the objective
    learning_rate: float = 0.05  # Adam's, which forgives an algorithm its scale
    iterations: int = configs.field(150, smoke=10)  # of learning
    inner_steps: int = 4  # gradient steps between two looks at the policy
    step_size: float = 2.0  # of the proximal step
    seed: int = 0  # of rewards, reference and start
    # to measure
    algorithms: tuple[str, ...] = configs.field(ALGORITHMS, smoke=("ppo", "rloo", "dr_grpo", "grpo"))

    def validate(self) -> None:
        configs.check_choices(self, algorithms=ALGORITHMS)
        _validation.at_least(2, group_size=self.group_size, vocab_size=self.vocab_size)
        language = tabular.Language(self.vocab_size, self.length, stop_token=0)
        sentences = sum((self.vocab_size - 1) ** n for n in range(language.length + 1))
        groups = math.comb(sentences + self.group_size - 1, self.group_size)
        if groups > MOST_GROUPS:
            remedy = f"There are {groups:,} groups; at most {MOST_GROUPS:,} can be enumerated."
            raise _validation.invalid("group_size", self.group_size, "smaller", remedy)
        configs.check_positive(self, "kl_coef", "step_size", "learning_rate")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A language, the rewards of its sentences, the reference policy and the initial logits."""

    language: tabular.Language
    rewards: jax.Array
    ref: jax.Array
    start: jax.Array
    kl_coef: float

    @property
    def optimum(self) -> jax.Array:
        """J*, the most that E[r] - β KL can be."""
        return tabular.optimum(self.ref, self.rewards, self.kl_coef, self.language)[1]

    def gap(self, policy) -> jax.Array:
        """J* - J of the log-probabilities of a policy."""
        return self.optimum - tabular.objective(policy, self.rewards, self.language, self.ref, self.kl_coef)


def make_problem(config: Config) -> Problem:
    """Random rewards, a random reference, and random logits to start from."""
    language = tabular.Language(config.vocab_size, config.length, stop_token=0)
    rng = np.random.default_rng(config.seed)
    shape = language.num_states, config.vocab_size
    ref, start = (jnp.asarray(0.7 * rng.normal(size=shape)) for _ in range(2))
    rewards = jnp.asarray(rng.normal(size=len(tabular.outcomes(language).tokens)))
    return Problem(language, rewards, jax.nn.log_softmax(ref), start, config.kl_coef)


def recipe(name: str, group_size: int, **overrides):
    """A named algorithm with groups of this size, or of 1 where it does not use groups."""
    config = recipes.RECIPES[name].config
    overrides = {"length_penalty": None, "group_size": group_size if config.group_size > 1 else 1} | overrides
    if name in ("ppo", "ppo_kl", "mdpo"):  # one sentence has no spread to be whitened by
        overrides = {"whitening": None} | overrides
    return recipes.make(name, **overrides)


def placed(placement: str, kl_coef: float, group_size: int):
    """Leave-one-out (RLOO) with the KL placed and estimated in one of the ways of `PLACEMENTS`."""
    where, estimator = PLACEMENTS[placement]
    return recipe("rloo", group_size, kl_placement=where, kl_estimator=estimator, kl_coef=kl_coef)


def critic(config, problem, log_probs):
    """The exact critic, for algorithms that use one; it includes a KL in the reward."""
    if config.group_size > 1:
        return None
    coef = config.kl.coef if config.kl.placement == "reward" else 0.0
    found = tabular.values(log_probs, problem.rewards, problem.language, problem.ref, coef)
    return jax.lax.stop_gradient(found.v)


def measure(config, problem, truth) -> dict[str, float]:
    """Length and direction of a mean gradient beside the truth, and its noise."""

    @jax.jit
    def moments(logits):
        values = critic(config, problem, jax.nn.log_softmax(logits))
        return tabular.moments(
            tabular.minibatch_loss(config, values),
            logits,
            problem.rewards,
            problem.language,
            group_size=config.group_size,
            ref_log_probs=problem.ref,
        )

    result = moments(problem.start)
    mean, goal = -np.ravel(result.gradient), np.ravel(truth)
    length = np.linalg.norm(mean)
    silent = length < 1e-12
    return {
        "scale": float(mean @ goal / (goal @ goal)),
        "cosine": 0.0 if silent else float(mean @ goal / length / np.linalg.norm(goal)),
        "bias": float(np.linalg.norm(mean - goal) / np.linalg.norm(goal)),
        "noise": float("inf") if silent else float(np.sqrt(result.variance) / length),
    }


def gradient(problem, of_divergence: bool) -> jax.Array:
    """The true gradient of the expected reward, or of minus the divergence."""

    def goal(logits):
        policy = jax.nn.log_softmax(logits)
        if of_divergence:
            return -tabular.divergence(policy, problem.ref, problem.language)
        return tabular.expected_reward(policy, problem.rewards, problem.language)

    return jax.jit(jax.grad(goal))(problem.start)


def learn(algorithm, problem, config: Config) -> np.ndarray:
    """J* - J after every iteration of exact expected steps, the start included."""
    optimizer = optax.adam(config.learning_rate)
    gap = lambda logits: problem.gap(jax.nn.log_softmax(logits))

    def iteration(carry, _):
        old = jax.nn.log_softmax(carry[0])
        loss = tabular.minibatch_loss(algorithm, critic(algorithm, problem, old))

        def step(carry, _):
            logits, state = carry
            _, grads = tabular.expected_value_and_grad(
                loss,
                logits,
                problem.rewards,
                problem.language,
                old_log_probs=old,
                group_size=algorithm.group_size,
                ref_log_probs=problem.ref,
            )
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(logits, updates), state), None

        carry, _ = jax.lax.scan(step, carry, length=config.inner_steps)
        return carry, gap(carry[0])

    run = jax.jit(lambda start: jax.lax.scan(iteration, start, length=config.iterations)[1])
    return np.append(gap(problem.start), run((problem.start, optimizer.init(problem.start))))


def proximal(problem, config: Config) -> np.ndarray:
    """J* - J after every exact proximal step."""
    args = problem.rewards, problem.language, problem.ref, problem.kl_coef

    def iteration(policy, _):
        policy = tabular.proximal_point(policy, *args, config.step_size)
        return policy, problem.gap(policy)

    start = jax.nn.log_softmax(problem.start)
    gaps = jax.jit(lambda p: jax.lax.scan(iteration, p, length=config.iterations)[1])(start)
    return np.append(problem.gap(start), gaps)


def families(config: Config) -> dict[str, dict[str, Any]]:
    """Family ↦ name ↦ configuration: algorithms, places of the KL, trust regions."""
    beta, size = config.kl_coef, config.group_size
    inverse = 1.0 / config.step_size
    own = {"rloo", "reinforce++_baseline", "grpo", "dr_grpo", "dapo", "gspo", "luspo", "topr"}
    whole = {"gae_lambda": 1.0, "kl_coef": beta}
    forward = partial(losses.kl_penalty, coef=inverse)
    reverse = partial(losses.kl_penalty, coef=inverse, direction="reverse")
    trust = {
        "clip": recipe("ppo", size, **whole),
        "KL(π_old‖π)": dataclasses.replace(recipe("ppo_kl", size, **whole), loss=forward),
        "KL(π‖π_old)": dataclasses.replace(recipe("mdpo", size, **whole), loss=reverse),
    }
    return {
        "algorithms": {n: recipe(n, size, kl_coef=beta) for n in config.algorithms if n in own},
        "where the KL is": {p: placed(p, beta, size) for p in PLACEMENTS if "exact" not in p},
        "trust regions": trust,
    }


def curves(run, problem, config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Sub-optimality by algorithm, by where the KL is, and by trust region."""
    found = {}
    for family, members in families(config).items():
        gaps = lambda name, members=members: {"gap": learn(members[name], problem, config)}
        kept = cached_results.compute_each(run, family, tuple(members), gaps)
        found[family] = {name: results["gap"] for name, results in kept.items()}
    found["trust regions"]["exact proximal step"] = proximal(problem, config)
    return found


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Measures gradients and sub-optimality; returns the numbers of the report."""
    with jax.enable_x64(True):
        problem = make_problem(config)
        size = config.group_size
        reward_truth, kl_truth = (gradient(problem, x) for x in (False, True))
        of_recipe = lambda name: measure(recipe(name, size, kl_coef=0.0), problem, reward_truth)
        gradients = cached_results.compute_each(run, "gradients", config.algorithms, of_recipe)
        silent = dataclasses.replace(problem, rewards=jnp.zeros_like(problem.rewards))
        of_placement = lambda name: measure(placed(name, 1.0, size), silent, kl_truth)
        placements = cached_results.compute_each(run, "placements", tuple(PLACEMENTS), of_placement)
        gaps = curves(run, problem, config)
    gradients, placements = jax.tree.map(float, (gradients, placements))
    return report.write(run, gradients, placements, gaps)


if __name__ == "__main__":
    cli.run(main)
