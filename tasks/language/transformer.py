"""Transformers: a GPT that predicts the next token, and an encoder that classifies sentences.

References:
    Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin. Attention is all you
    need. 2017.
    Radford, Wu, Child, Luan, Amodei, Sutskever. Language models are unsupervised multitask
    learners. 2019 (normalization before each branch, scaled initialization).
    Press, Wolf. Using the output embedding to improve language models. 2017 (weight tying).
"""

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.data.texts import PADDING
from lrpilot.tasks.networks.randomness import RunDropout

INITIAL_STD = 0.02


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

    is_causal: ClassVar[bool]

    def __init__(
        self,
        num_tokens: int,
        max_length: int,
        *,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: RunDropout,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(num_tokens, width)
        self.position_embedding = nn.Embedding(max_length, width)
        self.dropout = dropout
        self.blocks = nn.ModuleList(
            Block(width, num_heads, is_causal=self.is_causal, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        if num_classes:
            self.head = nn.Linear(width, num_classes, bias=False)
        # what ends a residual branch is smaller, as 2 `num_layers` of them add
        branch_std = INITIAL_STD / math.sqrt(2 * num_layers)
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
        max_length: largest number of tokens that it reads at once.
        num_layers: blocks.
        num_heads: attention heads, a divisor of `width`.
        width: size of a token's representation.
        dropout: applied to the embeddings and at the end of every branch.

    >>> import torch
    >>> gpt = GPT(65, 64, num_layers=4, num_heads=4, width=128, dropout=RunDropout(0.0))
    >>> gpt(torch.zeros(2, 10, dtype=torch.int64)).shape
    torch.Size([2, 10, 65])
    >>> sum(parameter.numel() for parameter in gpt.parameters())
    804096
    """

    is_causal = True

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, num_tokens) of what follows each of `tokens`, (batch, length)."""
        return functional.linear(self._hidden(tokens), self.token_embedding.weight)


class Encoder(_Transformer):
    """Classifies sentences by the mean of their words' representations.

    Its arguments are those of `GPT`, of words with the number `PADDING` that fills up sentences,
    and `num_classes`.

    >>> import torch
    >>> sizes = {"num_layers": 1, "num_heads": 2, "width": 8, "num_classes": 2}
    >>> encoder = Encoder(100, 9, dropout=RunDropout(0.0), **sizes)
    >>> encoder(torch.tensor([[5, 7, 9], [6, PADDING, PADDING]])).shape
    torch.Size([2, 2])
    """

    is_causal = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, num_classes) of sentences (batch, length)."""
        is_word = tokens != PADDING
        hidden = self._hidden(tokens, is_word[:, None, None, :])
        weight = is_word.to(hidden.dtype)[:, :, None]
        logits: Tensor = self.head((hidden * weight).sum(1) / weight.sum(1))
        return logits
