"""Language modelling: a character-level GPT on the texts of `lrpilot.tasks.data.texts`."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.data.texts import CHARACTERS, TEXTS, TextData, load_text
from lrpilot.tasks.language.task import LanguageTask
from lrpilot.tasks.language.transformer import GPT
from lrpilot.tasks.networks.batch import BatchedTaskRuns
from lrpilot.tasks.networks.randomness import RunDropout, seeded
from lrpilot.tasks.networks.task import NetworkRun, measuring

EVALUATION_BATCH = 128


@lru_cache(maxsize=4)
def _data_on_device(name: str, data_dir: str | None, device: str) -> TextData:
    return load_text(name, data_dir=data_dir).to(device)


@dataclass(frozen=True, kw_only=True)
class GPTTask(LanguageTask):
    """Predict each next character of a text, from windows drawn at random from it.

    Args:
        data: "shakespeare" or "sst2"; see `lrpilot.tasks.data.texts.load_text` for its parts.
        context: characters per window.
        batch_size: windows per step.
        num_privileged: held-out windows in the privileged loss.
    """

    data: str = "shakespeare"
    context: int = 64
    batch_size: int = 12
    num_privileged: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("context")
        self._require("data", self.data in TEXTS, f"be one of {TEXTS}")

    def load(self) -> TextData:
        """The text on the device; one copy per process."""
        data = _data_on_device(self.data, self.data_dir, self.device)
        largest = (len(data.held_out) - 1) // self.context
        windows = f"be at most the {largest} held-out windows of {self.context} characters"
        self._require("num_privileged", self.num_privileged <= largest, windows)
        return data

    def make_model(self, seed: int) -> nn.Module:
        """The GPT of this seed, on the device."""
        with seeded(seed):
            model = GPT(
                len(CHARACTERS),
                self.context,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                width=self.width,
                dropout=RunDropout(self.dropout),
            )
        return model.to(self.device)

    def start(self, seed: int) -> "GPTRun":
        """A new network on freshly drawn windows."""
        return GPTRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedGPTRuns":
        """B runs as one computation; see `BatchedTaskRuns`."""
        return BatchedGPTRuns(self, num_runs)

    def draw_windows(self, text: Tensor, generator: torch.Generator) -> Tensor:
        """Where a minibatch's windows of this text begin, (batch_size,), on the CPU."""
        return torch.randint(len(text) - self.context, (self.batch_size,), generator=generator)

    def privileged_batch(self) -> tuple[Tensor, Tensor]:
        """`num_privileged` windows of the held-out text, evenly spread, as neighbours are alike."""
        text = self.load().held_out
        last = len(text) - 1 - self.context
        starts = torch.linspace(0, last, self.num_privileged, dtype=torch.float64).long()
        return self.cut_windows(text, starts)

    def cut_windows(self, text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The characters from these on, and those that follow each: (..., context), int64."""
        offsets = torch.arange(self.context + 1, device=self.device)
        windows = text[starts.to(self.device, non_blocking=True).unsqueeze(-1) + offsets].long()
        return windows[..., :-1], windows[..., 1:]


class GPTRun(NetworkRun):
    """One GPT in training."""

    _task: GPTTask

    def __init__(self, task: GPTTask, seed: int) -> None:
        super().__init__(task, seed)
        self.data = task.load()

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        starts = self._task.draw_windows(self.data.train, self.generator)
        return self._task.cut_windows(self.data.train, starts)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self._outputs(inputs).flatten(0, 1), targets.flatten())

    def evaluate(self) -> dict[str, float]:
        """Loss on the whole held-out and test texts, cut into windows without overlap.

        Every character but the first is predicted once, from those before it in its window.
        """
        with measuring(self.model):
            return {
                "held_out_loss": self._text_loss(self.data.held_out),
                "test_loss": self._text_loss(self.data.test),
            }

    def _text_loss(self, text: Tensor) -> float:
        text, context = text.long(), self._task.context
        num_targets = len(text) - 1
        # a last, shorter window takes the rest
        cut = num_targets // context * context
        inputs = text[:cut].view(-1, context).split(EVALUATION_BATCH)
        targets = text[1 : cut + 1].view(-1, context).split(EVALUATION_BATCH)
        batches = list(zip(inputs, targets, strict=True))
        if cut < num_targets:
            batches.append((text[None, cut:-1], text[None, cut + 1 :]))
        total: float = sum(float(self._loss(x, y)) * y.numel() for x, y in batches)
        return total / num_targets


class BatchedGPTRuns(BatchedTaskRuns):
    """B GPTs in training as one computation; see `BatchedTaskRuns`."""

    _task: GPTTask

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        text = self._task.load().train
        starts = [self._task.draw_windows(text, self.generators[row]) for row in rows.tolist()]
        return self._task.cut_windows(text, torch.stack(starts))
