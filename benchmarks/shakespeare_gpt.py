"""A character-level GPT on Tiny Shakespeare at nanoGPT's CPU setting: held-out loss in nats.

`python benchmarks/shakespeare_gpt.py` (set LRPILOT_DATA to a folder with Tiny Shakespeare) trains
2,000 steps: 4 layers, 4 heads, width 128, context 64, batch 12, no dropout, AdamW (betas 0.9 and
0.99, weight decay 0.1), learning rate up to 1e-3 over 100 steps and down to 1e-4 by a cosine,
gradients of norm at most 1. nanoGPT's README states 1.88 for it, estimated on 20 random batches of
the last 10 % of the text; here that tenth is measured whole, as its halves: held-out and test.
"""

import argparse
import math
import platform
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lrpilot.tasks.data.archives import DataError
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--print-every", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    task = GPTTask(
        name="shakespeare",
        optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1),
        base_lr=MAX_LR,
        total_steps=arguments.steps,
        max_gradient_norm=1.0,
        device=arguments.device,
    )
    try:
        run = task.start(arguments.seed)
    except DataError as error:
        raise SystemExit(f"{error}") from None
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"device {arguments.device}, seed {arguments.seed}, "
        f"{sum(parameter.numel() for parameter in run.parameters):,} parameters\n"
    )
    seconds = 0.0
    while run.num_steps < arguments.steps:
        start = time.perf_counter()
        losses = []
        for _ in range(min(arguments.print_every, arguments.steps - run.num_steps)):
            losses.append(run.step(lr_at(run.num_steps, arguments.steps)))
        train_loss = float(torch.stack(losses).mean())
        seconds += time.perf_counter() - start
        print(
            f"step {run.num_steps:5d}  train loss {train_loss:.4f}  "
            f"held-out loss {run.evaluate()['held_out_loss']:.4f}  "
            f"{seconds / run.num_steps * 1e3:.1f} ms/step",
            flush=True,
        )
    metrics = run.evaluate()
    held_out, test = metrics["held_out_loss"], metrics["test_loss"]
    print(
        f"\nheld-out {held_out:.4f}, test {test:.4f}, the whole tenth {(held_out + test) / 2:.4f} "
        f"nats per character, training {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
