"""Sentence classification: a small transformer encoder on SST-2."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.data.texts import SentenceData, load_sentences
from lrpilot.tasks.language.base import LanguageRun, LanguageTask, seeded
from lrpilot.tasks.language.batch import BatchedLanguageRuns
from lrpilot.tasks.language.transformer import PADDING, Encoder, RunDropout
from lrpilot.tasks.networks.minibatches import Minibatches
from lrpilot.tasks.networks.supervised import EpochOrder, measuring, split_metrics

EVALUATION_BATCH = 256
NUM_CLASSES = 2


@lru_cache(maxsize=4)
def _data_on_device(data_dir: str | None, device: str) -> SentenceData:
    data = load_sentences(data_dir=data_dir)
    tensors = {k: v.to(device) for k, v in vars(data).items() if isinstance(v, Tensor)}
    return SentenceData(**tensors, num_words=data.num_words)


@dataclass(frozen=True, kw_only=True)
class SentenceTask(LanguageTask):
    """Tell favourable from unfavourable sentences about films.

    Epochs are shuffled, an incomplete batch is dropped. A batch is as long as its longest sentence.

    Raises:
        ValueError: if an argument is out of range, or a size is above what the data has.
        lrpilot.tasks.data.archives.DataError: by `start`, if the data is missing or unreadable.
    """

    batch_size: int = 32
    num_layers: int = 2
    width: int = 64
    num_privileged: int = 256

    def load(self) -> SentenceData:
        """The sentences on the device; one copy per process."""
        data = _data_on_device(self.data_dir, self.device)
        for name, part, largest in (
            ("batch_size", "training", len(data.train_x)),
            ("num_privileged", "held-out", len(data.held_out_x)),
        ):
            if getattr(self, name) > largest:
                raise ValueError(
                    f"`{name}` must be at most the {largest} {part} sentences, got "
                    f"{getattr(self, name)}"
                )
        return data

    def make_model(self, seed: int, generator: torch.Generator) -> nn.Module:
        """The encoder of this seed."""
        data = self.load()
        with seeded(seed):
            model = Encoder(
                data.num_words,
                data.train_x.shape[1],
                NUM_CLASSES,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                width=self.width,
                dropout=RunDropout(self.dropout, generator),
            )
        return model.to(self.device)

    def steps_per_epoch(self) -> int:
        """Optimizer steps in which a run goes through its training sentences once."""
        return len(self.load().train_x) // self.batch_size

    def start(self, seed: int) -> "SentenceRun":
        """A new network on freshly shuffled sentences."""
        return SentenceRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedSentenceRuns":
        """B runs as one computation.

        Raises:
            ValueError: if the optimizer cannot be batched (see `BatchedNetworkRuns`).
        """
        return BatchedSentenceRuns(self, num_runs)


class SentenceRun(LanguageRun):
    """One encoder in training."""

    def __init__(self, task: SentenceTask, seed: int) -> None:
        super().__init__(task, seed)
        self.data = task.load()
        self._task = task
        self._epoch = EpochOrder(len(self.data.train_x), task.batch_size, self.generator)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        index = self._epoch.next().to(self._task.device, non_blocking=True)
        return _trimmed(self.data.train_x[index]), self.data.train_y[index]

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self._logits(inputs), targets)

    def privileged_loss(self) -> float:
        """Cross-entropy on the first `num_privileged` held-out sentences."""
        size = self._task.num_privileged
        with measuring(self.model):
            inputs = _trimmed(self.data.held_out_x[:size])
            return float(self._loss(inputs, self.data.held_out_y[:size]))

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the whole held-out and test splits."""
        with measuring(self.model):
            return split_metrics(
                self.data, lambda x: self._logits(_trimmed(x)), batch_size=EVALUATION_BATCH
            )

    def state_dict(self) -> dict[str, Any]:
        """The state, with the order of the current epoch."""
        return {**super().state_dict(), **self._epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        self._epoch.load_state_dict(state)


class BatchedSentenceRuns(BatchedLanguageRuns):
    """B encoders in training as one computation, equal to the single runs to rounding.

    The batches of all runs are as long as the longest sentence among them.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: see `BatchedNetworkRuns`.
    """

    def __init__(self, task: SentenceTask, num_runs: int) -> None:
        super().__init__(task, num_runs)
        self.data = task.load()
        self._task: SentenceTask = task
        self._minibatches = Minibatches(
            self.generators, num_examples=len(self.data.train_x), batch_size=task.batch_size
        )

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        super().reset(rows, seeds)
        self._minibatches.start(rows)

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = self._minibatches.next(rows.cpu()).to(self.device, non_blocking=True)
        return _trimmed(self.data.train_x[index]), self.data.train_y[index]

    def _lengths(self, inputs: Tensor) -> list[int]:
        lengths: list[int] = (inputs != PADDING).sum(2).amax(1).tolist()
        return lengths

    def privileged_losses(self) -> Tensor:
        """Cross-entropies on the first `num_privileged` held-out sentences."""
        size = self._task.num_privileged
        return self._measured(_trimmed(self.data.held_out_x[:size]), self.data.held_out_y[:size])

    def state_dict(self) -> dict[str, Any]:
        """The state, with the orders of the current epochs."""
        return {**super().state_dict(), "minibatches": self._minibatches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._minibatches.load_state_dict(state["minibatches"])


def _trimmed(sentences: Tensor) -> Tensor:
    """Without the columns, of (..., columns), in which all sentences are filled up."""
    return sentences[..., : int((sentences != PADDING).sum(-1).max())]
