"""Texts for the training tasks: characters to predict, and sentences to classify.

References:
    Andrej Karpathy, The unreasonable effectiveness of recurrent neural networks, 2015 (Tiny
    Shakespeare).
    Socher, Perelygin, Wu, Chuang, Manning, Ng, Potts. Recursive deep models for semantic
    compositionality over a sentiment treebank. 2013 (SST-2).
"""

import functools
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrpilot.arguments import require_choice
from lrpilot.tasks.data.files import read_files, search_folders
from lrpilot.tasks.data.splits import Splits

TEXTS = ("shakespeare", "sst2")
# the 65 characters of Tiny Shakespeare, in the order of their codes
CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase
# what fills up sentences, and all rare words
PADDING, UNKNOWN = 0, 1
MIN_WORD_COUNT = 2

_Sentences = list[tuple[str, int]]


@dataclass(frozen=True)
class TextData:
    """A text in three disjoint parts, shared by all callers: never write into it.

    Attributes:
        train: numbers of characters in `CHARACTERS`, (N,), uint8.
        held_out: text for rewards and tuning.
        test: text for the final measurement only.
    """

    train: Tensor
    held_out: Tensor
    test: Tensor

    def to(self, device: str) -> "TextData":
        """The same text on a device."""
        return TextData(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True, eq=False, repr=False)
class SentenceData(Splits):
    """Sentences of two classes, with a test split.

    Inputs are numbers of words (N, longest sentence), int64, filled up with `PADDING`; targets are
    labels (N,), int64: 1 is a favourable judgement, 0 an unfavourable one.

    Attributes:
        num_words: size of the vocabulary, `PADDING` and `UNKNOWN` included.
    """

    test_x: Tensor
    test_y: Tensor
    num_words: int = field(kw_only=True)


def load_text(name: str, *, data_dir: str | None = None) -> TextData:
    """Loads a text once per process; later calls return the same object.

    =========== ======================== ===================== ==================
    name        train                    held-out              test
    =========== ======================== ===================== ==================
    shakespeare first 90 %, 1,003,854    next 5 %, 55,770      last 5 %, 55,770
    sst2        sentences of the train   of the dev file,      of the test file,
                file, 705,004            90,175                184,744
    =========== ======================== ===================== ==================

    "sst2" has a line per sentence, without its label. Of its characters 0.2 % (digits and
    backquotes) are no characters of Tiny Shakespeare and are left out, so that a network for one
    text reads the other.

    Args:
        name: "shakespeare" or "sst2".
        data_dir: local folder; None takes the environment variable `LRPILOT_DATA`, if set.

    Raises:
        ValueError: unknown `name`.
        DataError: as `read_files` and `search_folders` do.
    """
    require_choice("name", name, TEXTS)
    return _load_text(name, search_folders(data_dir))


@functools.cache
def _load_text(name: str, folders: tuple[Path, ...]) -> TextData:
    if name == "shakespeare":
        (content,) = read_files("shakespeare", folders).values()
        text = content.decode()
        # so that the training part is that of nanoGPT
        first, second = int(0.9 * len(text)), int(0.95 * len(text))
        parts = [text[:first], text[first:second], text[second:]]
    else:
        files = _read_sentences(folders)
        parts = ["".join(f"{sentence}\n" for sentence, _ in sentences) for sentences in files]
    return TextData(*map(encode_characters, parts))


def encode_characters(text: str) -> Tensor:
    """The place in `CHARACTERS` of each character, uint8; other characters are left out.

    >>> encode_characters("A 7B")
    tensor([13,  1, 14], dtype=torch.uint8)
    """
    numbers = {character: number for number, character in enumerate(CHARACTERS)}
    return torch.tensor([numbers[c] for c in text if c in numbers], dtype=torch.uint8)


def load_sentences(*, data_dir: str | None = None) -> SentenceData:
    """Loads SST-2's whole sentences (6,920 train, 872 held-out, 1,821 test) once per process.

    The vocabulary are the 7,204 words that occur at least twice in the training part, most
    frequent first; all others are one word, `UNKNOWN`.

    Args:
        data_dir: local folder; None takes the environment variable `LRPILOT_DATA`, if set.

    Raises:
        DataError: as `read_files` and `search_folders` do.
    """
    return _load_sentences(search_folders(data_dir))


@functools.cache
def _load_sentences(folders: tuple[Path, ...]) -> SentenceData:
    train, held_out, test = _read_sentences(folders)
    numbers = number_words(sentence for sentence, _ in train)
    longest = max(len(s.split()) for part in (train, held_out, test) for s, _ in part)

    def tensors(sentences: _Sentences) -> tuple[Tensor, Tensor]:
        x = np.full((len(sentences), longest), PADDING, dtype=np.int64)
        for row, (sentence, _) in zip(x, sentences, strict=True):
            words = sentence.split()
            row[: len(words)] = [numbers.get(word, UNKNOWN) for word in words]
        return torch.from_numpy(x), torch.tensor([label for _, label in sentences])

    return SentenceData(
        *tensors(train), *tensors(held_out), *tensors(test), num_words=len(numbers) + 2
    )


def number_words(sentences: Iterable[str]) -> dict[str, int]:
    """A number for each word that occurs at least twice, from 2, most frequent first.

    >>> number_words(["a b b c", "a b"])
    {'b': 2, 'a': 3}
    """
    counts = Counter(word for sentence in sentences for word in sentence.split())
    kept = [word for word, count in counts.items() if count >= MIN_WORD_COUNT]
    kept.sort(key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(kept, start=UNKNOWN + 1)}


def _read_sentences(folders: tuple[Path, ...]) -> list[_Sentences]:
    """Sentences and labels of the train, dev and test files."""
    parts = []
    for content in read_files("sst2", folders).values():
        rows = [line.rsplit("\t", 1) for line in content.decode().splitlines()]
        parts.append([(sentence, int(label)) for sentence, label in rows])
    return parts
