"""Transformers: a GPT that predicts the next token, and an encoder that classifies sentences.

References:
    Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin. Attention is all you
    need. 2017.
    Radford, Wu, Child, Luan, Amodei, Sutskever. Language models are unsupervised multitask
    learners. 2019 (normalization before each branch, scaled initialization).
    Press, Wolf. Using the output embedding to improve language models. 2017 (weight tying).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PADDING = 0
INITIAL_STD = 0.02


class RunDropout(nn.Module):
    """Dropout whose masks come from a run's own generator; the identity when measuring.

    While training y = x m / (1 - p), where the entries of m are 0 with probability p, else 1.
    One instance serves a whole network.

    Under `torch.func.vmap` over runs, set `streams` first: of each run, its generator, and how many
    positions of x (batch, length, ...) its own batch has. What lies behind these, which fills up
    shorter batches, is kept, and draws nothing.

    Args:
        probability: p, in [0, 1).
        generator: where the masks are drawn, on its device.
    """

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        super().__init__()
        self.probability = probability
        self.generator = generator
        self.streams: list[tuple[torch.Generator, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of x."""
        if not self.training or self.probability == 0.0:
            return x
        mask: Tensor = _Mask.apply(x.detach(), self)  # type: ignore[no-untyped-call]
        return x * mask

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The factor m / (1 - p) of x, from this generator, on its device."""
        uniform = torch.rand(x.shape, generator=generator, device=generator.device)
        mask = (uniform >= self.probability).to(x.dtype)
        return mask.div_(1.0 - self.probability)


class _Mask(torch.autograd.Function):
    """A mask for x; `vmap` draws that of each run as the run alone would."""

    @staticmethod
    def forward(x: Tensor, dropout: RunDropout) -> Tensor:
        return dropout.draw(x, dropout.generator).to(x.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None], x: Tensor, dropout: RunDropout
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        masks = torch.ones_like(x, device=dropout.generator.device)
        for run, mask, (generator, length) in zip(x, masks, dropout.streams, strict=True):
            mask[:, :length] = dropout.draw(run[:, :length], generator)
        return masks.to(x.device), 0


class Attention(nn.Module):
    """Multi-head self-attention, softmax(Q K^T / sqrt(width / num_heads)) V."""

    def __init__(self, width: int, num_heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.num_heads = num_heads
        self.is_causal = is_causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix x, (batch, length, width); `mask` is true where a position may be looked at."""
        batch, length, width = x.shape
        heads = self.query_key_value(x).view(batch, length, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.is_causal
        )
        output: Tensor = self.attention_output(mixed.transpose(1, 2).reshape(batch, length, width))
        return output


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the branches end in dropout."""

    def __init__(self, width: int, num_heads: int, *, is_causal: bool, dropout: RunDropout) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, num_heads, is_causal=is_causal)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_input = nn.Linear(width, 4 * width, bias=False)
        self.mlp_output = nn.Linear(4 * width, width, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One layer of the network."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        hidden = functional.gelu(self.mlp_input(self.mlp_norm(x)))
        output: Tensor = x + self.dropout(self.mlp_output(hidden))
        return output


class _Transformer(nn.Module):
    """Embeddings, blocks and a final normalization; no layer has a bias."""

    def __init__(
        self,
        num_tokens: int,
        max_length: int,
        *,
        num_layers: int,
        num_heads: int,
        width: int,
        is_causal: bool,
        dropout: RunDropout,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(num_tokens, width)
        self.position_embedding = nn.Embedding(max_length, width)
        self.dropout = dropout
        self.blocks = nn.ModuleList(
            Block(width, num_heads, is_causal=is_causal, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)

    def _initialize(self) -> None:
        """N(0, 0.02^2); what ends a residual branch is smaller, as 2 `num_layers` of them add."""
        branch_std = INITIAL_STD / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_branch_end = name.endswith(("attention_output.weight", "mlp_output.weight"))
                nn.init.normal_(parameter, std=branch_std if is_branch_end else INITIAL_STD)

    def _hidden(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        positions = self.position_embedding.weight[: tokens.shape[1]]
        x = self.dropout(self.token_embedding(tokens) + positions)
        for block in self.blocks:
            x = block(x, mask)
        hidden: Tensor = self.norm(x)
        return hidden


class GPT(_Transformer):
    """Predicts each next token from those before it; input and output embedding are one matrix.

    Args:
        num_tokens: size of the vocabulary.
        context: largest number of tokens that it reads at once.
        num_layers: blocks.
        num_heads: attention heads, a divisor of `width`.
        width: size of a token's representation.
        dropout: applied to the embeddings and at the end of every branch.

    >>> dropout = RunDropout(0.0, torch.Generator())
    >>> gpt = GPT(65, 64, num_layers=4, num_heads=4, width=128, dropout=dropout)
    >>> gpt(torch.zeros(2, 10, dtype=torch.int64)).shape
    torch.Size([2, 10, 65])
    >>> sum(parameter.numel() for parameter in gpt.parameters())
    804096
    """

    def __init__(
        self,
        num_tokens: int,
        context: int,
        *,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: RunDropout,
    ) -> None:
        super().__init__(
            num_tokens,
            context,
            num_layers=num_layers,
            num_heads=num_heads,
            width=width,
            is_causal=True,
            dropout=dropout,
        )
        self._initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, num_tokens) of what follows each of `tokens`, (batch, length)."""
        return functional.linear(self._hidden(tokens), self.token_embedding.weight)


class Encoder(_Transformer):
    """Classifies sentences by the mean of their words' representations.

    Args:
        num_tokens: size of the vocabulary, with the number `PADDING` that fills up sentences.
        max_length: largest number of words.
        num_classes: number of classes.
        num_layers: blocks.
        num_heads: attention heads, a divisor of `width`.
        width: size of a word's representation.
        dropout: applied to the embeddings and at the end of every branch.

    >>> dropout = RunDropout(0.0, torch.Generator())
    >>> encoder = Encoder(100, 9, 2, num_layers=1, num_heads=2, width=8, dropout=dropout)
    >>> encoder(torch.tensor([[5, 7, 9], [6, PADDING, PADDING]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        num_tokens: int,
        max_length: int,
        num_classes: int,
        *,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: RunDropout,
    ) -> None:
        super().__init__(
            num_tokens,
            max_length,
            num_layers=num_layers,
            num_heads=num_heads,
            width=width,
            is_causal=False,
            dropout=dropout,
        )
        self.head = nn.Linear(width, num_classes, bias=False)
        self._initialize()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, num_classes) of sentences (batch, length)."""
        is_word = tokens != PADDING
        hidden = self._hidden(tokens, is_word[:, None, None, :])
        weight = is_word.to(hidden.dtype)[:, :, None]
        logits: Tensor = self.head((hidden * weight).sum(1) / weight.sum(1))
        return logits
