"""A learned policy in a plain training loop, beside cosine decay: `python examples/own_loop.py`.

A small network learns scikit-learn's digits from five initial learning rates. Cosine decay needs
the right one; the policy, which is not tuned for anything here, finds its own scale.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from lrpilot import PolicyLR

INITIAL_LRS = (0.003, 0.01, 0.1, 1.0, 3.0)
BATCH_SIZE = 64
NUM_TEST = 400


def load() -> tuple[Tensor, Tensor]:
    """Images as rows of 64 pixels in [0, 1], and their digits; in random order."""
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32) / 16.0
    return inputs[order], torch.tensor(digits)[order]


def train(name: str, initial_lr: float, *, total_steps: int, seed: int) -> float:
    """The accuracy on test images after a training under this scheduler."""
    torch.manual_seed(seed)
    inputs, targets = load()
    train_x, train_y = inputs[NUM_TEST:], targets[NUM_TEST:]
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=initial_lr, momentum=0.9)
    if name == "policy":
        policy = PolicyLR(optimizer, "small_networks", total_steps=total_steps)
    else:
        cosine = CosineAnnealingLR(optimizer, total_steps)
    for _ in range(total_steps):
        index = torch.randint(len(train_x), (BATCH_SIZE,))
        loss = cross_entropy(model(train_x[index]), train_y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if name == "policy":
            policy.step(loss)
        else:
            cosine.step()
    with torch.no_grad():
        predicted = model(inputs[:NUM_TEST]).argmax(1)
    return float((predicted == targets[:NUM_TEST]).float().mean())


def main() -> None:
    """Train all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-steps", type=int, default=300)
    parser.add_argument("--num-seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [
        (name, lr, seed)
        for name in ("policy", "cosine")
        for lr in INITIAL_LRS
        for seed in range(arguments.num_seeds)
    ]
    accuracies: dict[tuple[str, float], list[float]] = {}
    for name, lr, seed in tqdm(jobs, unit=" runs"):
        accuracy = train(name, lr, total_steps=arguments.total_steps, seed=seed)
        accuracies.setdefault((name, lr), []).append(accuracy)
    print("test accuracy at initial lr" + "".join(f"{lr:>9g}" for lr in INITIAL_LRS))
    for name in ("policy", "cosine"):
        means = (sum(accuracies[name, lr]) / arguments.num_seeds for lr in INITIAL_LRS)
        print(f"{name:27}" + "".join(f"{mean:9.3f}" for mean in means))


if __name__ == "__main__":
    main()
