"""The same jobs in plain PyTorch: what one would write by hand, with its fast parts.

Packed projections, fused attention, a preallocated cache, the fused Adam (on a CPU several times
quicker than the foreach one). The parameters are taken from proxlm, so that the two can be
compared number by number.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.benchmarks import clock
from proxlm import lm


def prepare() -> torch.device:
    """As many threads as JAX has; on a GPU the same freedom to multiply in TF32."""
    torch.set_num_threads(clock.cores())
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "highest")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Block(nn.Module):
    """One layer: attention and a gated MLP, both after a norm."""

    def __init__(self, params, config):
        super().__init__()
        self.heads, self.epsilon = config.num_heads, config.norm_epsilon
        self.attention_norm = parameter(params["attention_norm"]["scale"])
        self.qkv = kernel(params["attention"]["qkv"]["kernel"], inputs=1)
        self.out = kernel(params["attention"]["out"]["kernel"], inputs=2)
        self.mlp_norm = parameter(params["mlp_norm"]["scale"])
        self.gate_up = kernel(params["mlp"]["gate_up"]["kernel"], inputs=1)
        self.down = kernel(params["mlp"]["down"]["kernel"], inputs=1)

    def forward(self, x, turn, cache=None, start=0):
        """Takes `[B, T, D]`; with a cache, T tokens that begin at position `start`."""
        batch, length, width = x.shape
        qkv = F.linear(F.rms_norm(x, (width,), self.attention_norm, self.epsilon), self.qkv)
        qkv = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = rotate(qkv[0], *turn), rotate(qkv[1], *turn), qkv[2]
        if cache is not None:
            end = start + length
            for buffer, new in zip(cache, (key, value), strict=True):
                buffer[:, :, start:end] = new
            key, value = (buffer[:, :, :end] for buffer in cache)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, width), self.out)
        hidden = F.linear(F.rms_norm(x, (width,), self.mlp_norm, self.epsilon), self.gate_up)
        gate, up = hidden.chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Transformer(nn.Module):
    """A decoder with proxlm's parameters and proxlm's conventions."""

    def __init__(self, params, config):
        super().__init__()
        if config.num_kv_heads != config.num_heads:
            raise ValueError("num_kv_heads: the peer has a key for every query; leave it at None")
        self.config = config
        self.embedding = parameter(params["embedding"]["kernel"])
        self.blocks = nn.ModuleList(Block(part, config) for part in lm.unstack(params["blocks"]))
        self.norm = parameter(params["norm"]["scale"])
        self.head = parameter(params["head"]["kernel"]) if "head" in params else self.embedding
        if config.value_head:
            self.value = parameter(params["value"]["kernel"])
            self.value_bias = parameter(params["value"]["bias"])
        steps = torch.arange(0, config.head_width, 2) / config.head_width
        angles = torch.arange(config.max_length)[:, None] * config.rope_theta ** -steps[None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, cache=None, start=0):
        """Normalised hidden states `[B, T, D]` of `[B, T]` tokens."""
        end = start + tokens.shape[1]
        turn = self.cos[start:end], self.sin[start:end]
        x = F.embedding(tokens, self.embedding)
        for i, block in enumerate(self.blocks):
            x = block(x, turn, None if cache is None else cache[i], start)
        return F.rms_norm(x, x.shape[-1:], self.norm, self.config.norm_epsilon)

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def values(self, hidden):
        return hidden @ self.value + self.value_bias

    def new_cache(self, batch, length):
        """A key and a value buffer for every layer."""
        shape = (batch, self.config.num_heads, length, self.config.head_width)
        make = lambda: torch.zeros(shape, device=self.embedding.device)
        return [(make(), make()) for _ in self.blocks]


def parameter(x):
    return nn.Parameter(torch.tensor(np.asarray(x)))


def kernel(x, inputs):
    """A kernel whose first axes are inputs as the matrix [outputs, inputs] of `F.linear`."""
    x = np.asarray(x)
    return parameter(x.reshape(int(np.prod(x.shape[:inputs])), -1).T.copy())


def rotate(x, cos, sin):
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def training(params, config, windows, learning_rate, b2, weight_decay):
    """A function of no arguments: a step of AdamW for each batch `[steps, B, T + 1]`."""
    device = prepare()
    model = Transformer(params, config).to(device)
    batches = torch.as_tensor(windows, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), learning_rate, (0.9, b2), weight_decay=weight_decay, fused=True
    )

    def step(batch):
        logits = model.logits(model(batch[:, :-1])).flatten(0, 1)
        loss = F.cross_entropy(logits, batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return lambda: torch.stack([step(batch) for batch in batches]).cpu().numpy()


def extend(model, prompts, num_tokens):
    """Samples after prompts `[B, P]`: tokens `[B, P + R]` and log-probabilities `[B, R]`."""
    cache = model.new_cache(len(prompts), prompts.shape[1] + num_tokens)
    tokens, log_probs, new, start = [prompts], [], prompts, 0
    for _ in range(num_tokens):
        hidden = model(new, cache, start)[:, -1]
        start += new.shape[1]
        distribution = F.log_softmax(model.logits(hidden), dim=-1)
        new = torch.multinomial(distribution.exp(), 1)
        tokens.append(new)
        log_probs.append(distribution.gather(1, new))
    return torch.cat(tokens, dim=1), torch.cat(log_probs, dim=1)


def sampling(params, config, prompts, num_tokens):
    """A function of no arguments that samples; it returns tokens and log-probabilities."""
    device = prepare()
    model = Transformer(params, config).to(device)
    given = torch.as_tensor(prompts, dtype=torch.long, device=device)

    def call():
        with torch.inference_mode():
            tokens, log_probs = extend(model, given, num_tokens)
            return tokens.cpu().numpy(), log_probs.cpu().numpy()

    return call


def llama(config):
    """The Llama of transformers in a model's shape, with random parameters."""
    import transformers

    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.hidden_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def hugging_face(config, prompts, num_tokens):
    """The same by `generate` of transformers, its Llama with random parameters."""
    import transformers

    device = prepare()
    model = llama(config)
    model = model.eval().to(device)
    given = torch.as_tensor(prompts, dtype=torch.long, device=device)
    how = transformers.GenerationConfig(
        do_sample=True, top_k=0, min_new_tokens=num_tokens, max_new_tokens=num_tokens
    )

    def call():
        with torch.inference_mode():
            mask = torch.ones_like(given)
            tokens = model.generate(input_ids=given, attention_mask=mask, generation_config=how)
            return tokens.cpu().numpy()

    return call
