"""ResNet-9 on CIFAR-10 by one-cycle: accuracy per epoch, and on the test split at the end.

`python benchmarks/resnet9_cifar.py` (set LRPILOT_DATA to a folder with CIFAR-10) trains 20 epochs
on the 45,000 training images, augmented, in bfloat16. Without a CUDA device it says so and trains
on the CPU: about two hours on one core that multiplies matrices in bfloat16 (AMX), half an hour
with `--widths 32 64 128 256`; on other processors `--precision float32` is faster.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import trange

from lrpilot.evaluation.methods.schedules import one_cycle
from lrpilot.evaluation.provenance import describe_provenance
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.images.models import resnet9
from lrpilot.tasks.images.task import ImageRun, ImageTask
from lrpilot.tasks.networks.task import PRECISIONS


def parse_arguments() -> argparse.Namespace:
    """The settings; the defaults are those of the recorded run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--max-lr", type=float, default=0.4)
    parser.add_argument("--widths", type=int, nargs=4, default=[64, 128, 256, 512])
    parser.add_argument("--normalization", default="batch")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--num-train", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=1)
    return parser.parse_args()


def make_task(arguments: argparse.Namespace) -> ImageTask:
    """CIFAR-10 with crops and flips, SGD with Nesterov momentum and weight decay."""
    return ImageTask(
        name="cifar",
        data="cifar10",
        model=partial(resnet9, widths=arguments.widths, normalization=arguments.normalization),
        optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        base_lr=arguments.max_lr,
        total_steps=1,
        batch_size=arguments.batch_size,
        num_train=arguments.num_train,
        augment=True,
        device=arguments.device,
        precision=arguments.precision,
    )


def train(task: ImageTask, *, epochs: int, seed: int) -> ImageRun:
    """Train, and print a line per epoch: held-out accuracy only, the test split is for the end."""
    run = task.start(seed)
    steps_per_epoch = len(run.data.train_x) // task.batch_size
    scheduler = one_cycle(run.optimizer, total_steps=epochs * steps_per_epoch, warmup_share=0.3)
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        losses = []
        for _ in trange(steps_per_epoch, desc=f"epoch {epoch}", unit=" steps", leave=False):
            losses.append(run.step())
            scheduler.step()
        train_loss = float(torch.stack(losses).mean())
        seconds += time.perf_counter() - start
        metrics = run.evaluate()
        cells = [
            f"epoch {epoch:3d}",
            f"steps {run.num_steps:6d}",
            f"train loss {train_loss:.4f}",
            f"held-out loss {metrics['held_out_loss']:.4f}",
            f"held-out accuracy {metrics['held_out_accuracy']:.2%}",
            f"training {seconds:.1f} s",
        ]
        print("  ".join(cells), flush=True)
    return run


def main() -> None:
    """Train once and print what came out."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.num_threads)
    if arguments.device == "cpu":
        print(f"no device: on the CPU in {arguments.precision}")
    else:
        torch.backends.cudnn.benchmark = True
        print(f"{torch.cuda.get_device_name(arguments.device)}, {arguments.precision}")
    origin = ", ".join(f"{key} {value}" for key, value in describe_provenance().items())
    print(f"{origin}, seed {arguments.seed}\n")
    try:
        run = train(make_task(arguments), epochs=arguments.epochs, seed=arguments.seed)
    except DataError as error:
        raise SystemExit(f"{error}") from None
    metrics = run.evaluate()
    header = ["parameters", "test loss", "test accuracy"]
    line = [
        f"{sum(parameter.numel() for parameter in run.parameters):,}",
        f"{metrics['test_loss']:.4f}",
        f"{metrics['test_accuracy']:.2%}",
    ]
    print("\n" + format_table(header, [line]))
    if arguments.device != "cpu":
        print(f"\nlargest GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
