"""A learned policy in Hugging Face's Trainer: `python examples/trainer.py`.

A small GPT learns to write this repository's licence, letter by letter, from three initial learning
rates, under the policy and under the Trainer's linear decay. Install with
`pip install -c constraints.txt ".[integrations]"`; nothing is downloaded.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from lrpilot import PolicyLR
from lrpilot.integrations.huggingface import LossCallback

TEXT = (Path(__file__).resolve().parents[1] / "LICENSE").read_text()
INITIAL_LRS = (1e-4, 1e-3, 1e-2)
WINDOW, BATCH_SIZE = 32, 16


class PolicyTrainer(Trainer):
    """The Trainer, whose scheduler is a policy and is shown the loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(LossCallback(self))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> PolicyLR:
        """Called by the Trainer with the number of its optimizer steps."""
        optimizer = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = PolicyLR(optimizer, "cifar", total_steps=num_training_steps)
        return self.lr_scheduler


def load() -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]], int]:
    """Windows of letters to train on, every tenth one held out, and the number of letters."""
    letters = sorted(set(TEXT))
    ids = torch.tensor([letters.index(letter) for letter in TEXT])
    windows = [
        {"input_ids": ids[i : i + WINDOW], "labels": ids[i : i + WINDOW]}
        for i in range(0, len(ids) - WINDOW, WINDOW)
    ]
    train = [window for i, window in enumerate(windows) if i % 10]
    return train, windows[::10], len(letters)


def held_out_loss(kind: type[Trainer], initial_lr: float, total_steps: int) -> float:
    """The loss on held-out windows after a training."""
    set_seed(0)
    train, held_out, num_letters = load()
    config = GPT2Config(
        vocab_size=num_letters,
        n_positions=WINDOW,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            learning_rate=initial_lr,
            max_steps=total_steps,
            use_cpu=True,
            per_device_train_batch_size=BATCH_SIZE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = kind(
            GPT2LMHeadModel(config), arguments, train_dataset=train, eval_dataset=held_out
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return float(trainer.evaluate()["eval_loss"])


def main() -> None:
    """Train all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-steps", type=int, default=300)
    total_steps = parser.parse_args().total_steps
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    kinds = {"policy": PolicyTrainer, "linear": Trainer}
    jobs = [(name, lr) for name in kinds for lr in INITIAL_LRS]
    losses = {job: held_out_loss(kinds[job[0]], job[1], total_steps) for job in tqdm(jobs)}
    print("held-out loss at initial lr" + "".join(f"{lr:>9g}" for lr in INITIAL_LRS))
    for name in kinds:
        print(f"{name:27}" + "".join(f"{losses[name, lr]:9.3f}" for lr in INITIAL_LRS))


if __name__ == "__main__":
    main()
