"""ResNet-9 on CIFAR-10 by one-cycle: accuracy per epoch, and on the test split at the end.

`python benchmarks/resnet9_cifar.py` (set LRPILOT_DATA to a folder with CIFAR-10) trains 20 epochs
on the 45,000 training images, augmented, in bfloat16. Without a CUDA device it says so and trains
on the CPU: about two hours on one core that multiplies matrices in bfloat16 (AMX), half an hour
with `--widths 32 64 128 256`; on other processors `--precision float32` is faster.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.long_training import start, train
from benchmarks.side_by_side import read_options
from lrpilot.evaluation.methods.schedules import one_cycle
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.images.models import resnet9
from lrpilot.tasks.images.task import ImageTask


def main() -> None:
    """Train once, by default as in the recorded run, and print what came out."""
    options = read_options(
        __doc__,
        device="cuda" if torch.cuda.is_available() else "cpu",
        epochs=20,
        batch_size=512,
        max_lr=0.4,
        widths=[64, 128, 256, 512],
        normalization="batch",
        precision="bfloat16",
        num_train=45_000,
        seed=0,
    )
    torch.backends.cudnn.benchmark = True
    task = ImageTask(
        name="cifar",
        data="cifar10",
        model=partial(resnet9, widths=options.widths, normalization=options.normalization),
        optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        base_lr=options.max_lr,
        total_steps=options.epochs * (options.num_train // options.batch_size),
        batch_size=options.batch_size,
        num_train=options.num_train,
        augment=True,
        device=options.device,
        precision=options.precision,
    )
    run = start(task, options.seed)
    scheduler = one_cycle(run.optimizer, total_steps=task.total_steps, warmup_share=0.3)

    def step() -> Tensor:
        loss = run.step()
        scheduler.step()
        return loss

    metrics = train(
        run,
        step,
        num_steps=task.total_steps,
        print_every=options.num_train // options.batch_size,
    )
    header = ["test loss", "test accuracy"]
    print("\n" + format_table(header, [[f"{metrics[k.replace(' ', '_')]:.4f}" for k in header]]))
    if options.device != "cpu":
        print(f"\nlargest GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
