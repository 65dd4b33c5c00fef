"""Small language tasks; any argument can be replaced."""

from functools import partial
from typing import Any

import torch

from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.lora import LoRATask
from lrpilot.tasks.language.sentences import SentenceTask

ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1)
COMMON: dict[str, Any] = {
    "optimizer": ADAMW,
    "base_lr": 3e-3,
    "total_steps": 20,
    "num_layers": 2,
    "num_heads": 2,
    "width": 16,
}
WINDOWS: dict[str, Any] = {"context": 16, "batch_size": 6, "num_privileged": 8}


def gpt_task(**changes: Any) -> GPTTask:
    return GPTTask(**{"name": "shakespeare", **COMMON, **WINDOWS, **changes})


def sentence_task(**changes: Any) -> SentenceTask:
    sizes = {"optimizer": torch.optim.AdamW, "batch_size": 16, "num_privileged": 20}
    return SentenceTask(**{"name": "sst2", **COMMON, **sizes, **changes})


def lora_task(**changes: Any) -> LoRATask:
    adapters = {"rank": 2, "pretraining_steps": 30, "base_lr": 1e-2}
    sizes = {"optimizer": torch.optim.AdamW, **WINDOWS, **adapters}
    return LoRATask(**{"name": "lora", **COMMON, **sizes, **changes})
