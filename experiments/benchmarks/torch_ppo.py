"""An iteration of PPO in plain PyTorch, with a KV-cached sampler of its own."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F

from experiments.benchmarks import torch_peer


class Models(NamedTuple):
    """The policy that learns, and the frozen reference."""

    policy: torch_peer.Transformer
    critic: torch_peer.Transformer
    reference: torch_peer.Transformer


class Experience(NamedTuple):
    """Tokens `[B, P + R]`; the rest `[B, R]`."""

    tokens: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def build(params, policy_config, critic_config) -> Models:
    """Models with the parameters of an `lm.Actor`; the reference is a copy of the policy."""
    device = torch_peer.prepare()
    policy = torch_peer.Transformer(params["policy"], policy_config).to(device)
    critic = torch_peer.Transformer(params["critic"], critic_config).to(device)
    return Models(policy, critic, copy.deepcopy(policy).requires_grad_(False))


def adam(models: Models, learning_rate: float, epsilon: float) -> torch.optim.Adam:
    """Adam on policy and critic."""
    params = [*models.policy.parameters(), *models.critic.parameters()]
    return torch.optim.Adam(params, learning_rate, eps=epsilon, fused=True)


def iterate(models: Models, optimizer, shape, num_tokens: int, config) -> float:
    """Samples after random prompts of `shape` [B, P], learns, and returns the mean score."""
    vocab_size = models.policy.config.vocab_size
    prompts = torch.randint(vocab_size, shape, device=models.policy.embedding.device)
    with torch.no_grad():
        tokens, log_probs = torch_peer.extend(models.policy, prompts, num_tokens)
        scores = (tokens[:, shape[1] :] < vocab_size // 2).float().mean(dim=1)
        experience = prepare(models, tokens, log_probs, scores, config)
    learn(models, optimizer, experience, config)
    return scores.mean().item()


def prepare(models: Models, tokens, log_probs, scores, config) -> Experience:
    """Rewards with the KL in them, values, whitened advantages, returns."""
    start = tokens.shape[1] - log_probs.shape[1]
    rewards = config.kl.coef * (log_probs_of(models.reference, tokens, start) - log_probs)
    rewards[:, -1] += scores
    values = values_of(models.critic, tokens, start)
    advantages = gae(rewards, values, config.settings["discount"], config.settings["gae_lambda"])
    centred = advantages - advantages.mean()
    whitened = centred * torch.rsqrt(centred.square().mean() + config.whitening.epsilon)
    return Experience(tokens, log_probs, values, whitened, advantages + values)


def gae(rewards, values, discount: float, gae_lambda: float):
    """Generalised advantage estimation of `[B, R]`, the value after the last token being 0."""
    following = F.pad(values[:, 1:], (0, 1))
    errors = rewards + discount * following - values
    advantages, running = torch.empty_like(errors), torch.zeros_like(errors[:, 0])
    for i in reversed(range(errors.shape[1])):
        running = errors[:, i] + discount * gae_lambda * running
        advantages[:, i] = running
    return advantages


def learn(models: Models, optimizer, experience: Experience, config) -> None:
    """Epochs of shuffled minibatches."""
    batch = len(experience.tokens)
    for _ in range(config.num_epochs):
        order = torch.randperm(batch, device=experience.tokens.device)
        for rows in order.view(config.num_minibatches, -1):
            optimizer.zero_grad()
            part = Experience(*(x[rows] for x in experience))
            loss(models, part, config).backward()
            optimizer.step()


def loss(models: Models, experience: Experience, config):
    """The clipped surrogate plus the clipped value loss, means over tokens."""
    tokens, old_log_probs, old_values, advantages, returns = experience
    start = tokens.shape[1] - old_log_probs.shape[1]
    ratio = (log_probs_of(models.policy, tokens, start) - old_log_probs).exp()
    clipped = ratio.clamp(1 - config.settings["clip_low"], 1 + config.settings["clip_high"])
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    values = values_of(models.critic, tokens, start)
    near = old_values + (values - old_values).clamp(-config.value.clip, config.value.clip)
    worse = torch.maximum((values - returns).square(), (near - returns).square())
    return policy_loss + config.value.coef * 0.5 * worse.mean()


def log_probs_of(model, tokens, start: int):
    """Log-probabilities `[B, R]` of the tokens from column `start` on."""
    hidden = model(tokens[:, :-1])[:, start - 1 :]
    logits, targets = model.logits(hidden).flatten(0, 1), tokens[:, start:].flatten()
    return -F.cross_entropy(logits, targets, reduction="none").view(len(tokens), -1)


def values_of(model, tokens, start: int):
    """Values `[B, R]` of the states before the tokens from column `start` on."""
    return model.values(model(tokens[:, :-1])[:, start - 1 :])
