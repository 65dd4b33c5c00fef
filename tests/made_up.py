"""Data of the language tasks, made up: small, and no file is needed."""

import random

import torch
from torch import Tensor

from lrpilot.tasks.data.texts import PADDING, SentenceData, TextData, encode_characters

NUM_WORDS = 30
LONGEST = 9


def made_up_text(num_words: int, seed: int) -> Tensor:
    """Words of a famous line in any order."""
    words = ["To", "be", "or", "not", "that", "is", "the", "question", "sleep", "dream"]
    return encode_characters(" ".join(random.Random(seed).choices(words, k=num_words)))


def made_up_sentences(count: int, seed: int, *, longest: int = LONGEST) -> tuple[Tensor, Tensor]:
    """Sentences of 1 to `longest` - 1 words, favourable if they have a word below 6."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(2, NUM_WORDS, (count, longest), generator=rng)
    lengths = torch.randint(1, longest, (count,), generator=rng)
    x[torch.arange(longest) >= lengths[:, None]] = PADDING
    return x, ((x > 1) & (x < 6)).any(1).long()


TEXT = TextData(*(made_up_text(size, i) for i, size in enumerate((2000, 300, 301))))
# 6 batches of 16 are an epoch
SENTENCES = SentenceData(
    *made_up_sentences(100, 0),
    *made_up_sentences(40, 1),
    *made_up_sentences(41, 2),
    num_words=NUM_WORDS,
)
