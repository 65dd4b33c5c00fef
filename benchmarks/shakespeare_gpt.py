"""A character-level GPT on Tiny Shakespeare at nanoGPT's CPU setting: held-out loss in nats.

`python benchmarks/shakespeare_gpt.py` (set LRPILOT_DATA to a folder with Tiny Shakespeare) trains
2,000 steps: 4 layers, 4 heads, width 128, context 64, batch 12, no dropout, AdamW (betas 0.9 and
0.99, weight decay 0.1), learning rate up to 1e-3 over 100 steps and down to 1e-4 by a cosine,
gradients of norm at most 1. nanoGPT's README states 1.88 for it, estimated on 20 random batches of
the last 10 % of the text; here that tenth is measured whole, as its halves: held-out and test.
"""

import math
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.long_training import start, train
from benchmarks.side_by_side import read_options
from lrpilot.tasks.language.gpt import GPTTask

MAX_LR = 1e-3
MIN_LR = 1e-4
NUM_WARMUP_STEPS = 100


def lr_at(step: int, num_steps: int) -> float:
    """Linear warm-up from near 0, then a cosine to `MIN_LR`; steps count from 0."""
    if step < NUM_WARMUP_STEPS:
        return MAX_LR * (step + 1) / (NUM_WARMUP_STEPS + 1)
    progress = (step - NUM_WARMUP_STEPS) / (num_steps - NUM_WARMUP_STEPS)
    return MIN_LR + (MAX_LR - MIN_LR) * (1.0 + math.cos(math.pi * progress)) / 2


def main() -> None:
    """Train once and print what came out."""
    options = read_options(__doc__, steps=2000, print_every=200, device="cpu", seed=0)
    task = GPTTask(
        name="shakespeare",
        optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1),
        base_lr=MAX_LR,
        total_steps=options.steps,
        max_gradient_norm=1.0,
        device=options.device,
    )
    run = start(task, options.seed)
    metrics = train(
        run,
        lambda: run.step(lr_at(run.num_steps, options.steps)),
        num_steps=options.steps,
        print_every=options.print_every,
    )
    held_out, test = metrics["held_out_loss"], metrics["test_loss"]
    print(
        f"\nheld-out {held_out:.4f}, test {test:.4f}, the whole tenth {(held_out + test) / 2:.4f} "
        "nats per character"
    )


if __name__ == "__main__":
    main()
