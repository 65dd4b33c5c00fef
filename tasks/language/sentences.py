"""Sentence classification: a small transformer encoder on SST-2."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor, nn

from lrpilot.tasks.data.texts import PADDING, SentenceData, load_sentences
from lrpilot.tasks.language.task import LanguageTask
from lrpilot.tasks.language.transformer import Encoder
from lrpilot.tasks.networks.randomness import RunDropout, seeded
from lrpilot.tasks.networks.supervised import BatchedSupervisedRuns, SupervisedRun, SupervisedTask

NUM_CLASSES = 2


@lru_cache(maxsize=4)
def _data_on_device(data_dir: str | None, device: str) -> SentenceData:
    return load_sentences(data_dir=data_dir).to(device)


@dataclass(frozen=True, kw_only=True)
class SentenceTask(LanguageTask, SupervisedTask):
    """Tell favourable from unfavourable sentences about films.

    A batch is as long as its longest sentence.
    """

    batch_size: int = 32
    num_layers: int = 2
    width: int = 64
    evaluation_batch: ClassVar[int] = 256

    def load(self) -> SentenceData:
        """The sentences on the device; one copy per process."""
        data = _data_on_device(self.data_dir, self.device)
        self._check_sizes(data)
        return data

    def make_model(self, seed: int) -> nn.Module:
        """The encoder of this seed, on the device."""
        data = self.load()
        with seeded(seed):
            model = Encoder(
                data.num_words,
                data.train_x.shape[1],
                num_classes=NUM_CLASSES,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                width=self.width,
                dropout=RunDropout(self.dropout),
            )
        return model.to(self.device)

    def start(self, seed: int) -> "SentenceRun":
        """A new network on freshly shuffled sentences."""
        return SentenceRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedSentenceRuns":
        """B runs as one computation; see `BatchedSupervisedRuns`."""
        return BatchedSentenceRuns(self, num_runs)


class SentenceRun(SupervisedRun):
    """One encoder in training."""

    def _outputs(self, inputs: Tensor) -> Tensor:
        return super()._outputs(_trimmed(inputs))


class BatchedSentenceRuns(BatchedSupervisedRuns):
    """B encoders in training; see `BatchedSupervisedRuns`.

    The batches of all runs are as long as the longest sentence among them.
    """

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = super()._next_batches(rows)
        return _trimmed(inputs), targets

    def _lengths(self, inputs: Tensor) -> list[int]:
        lengths: list[int] = (inputs != PADDING).sum(2).amax(1).tolist()
        return lengths

    def _measured(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return super()._measured(_trimmed(inputs), targets)


def _trimmed(sentences: Tensor) -> Tensor:
    """Without the columns, of (..., columns), in which all sentences are filled up."""
    return sentences[..., : int((sentences != PADDING).sum(-1).max())]
