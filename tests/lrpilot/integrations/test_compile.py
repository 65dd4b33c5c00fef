import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.lrpilot.integrations.loss_lr import LossLR

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")


def train(lr: Any, *, backend: Any = None) -> tuple[list[float], Any]:
    """The weight's path in six steps, and the learning rate's object after them."""
    torch._dynamo.reset()
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=lr)
    scheduler = LossLR(optimizer)
    step = torch.compile(optimizer.step, backend=backend) if backend else optimizer.step
    path = []
    for k in range(6):
        weight.grad = weight.detach() + k
        step()
        scheduler.step(1.0 / (k + 1))
        path.append(weight[0].item())
    return path, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    "name",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
            ],
        ),
    ],
)
def test_a_tensor_learning_rate_changes_in_place_without_recompilation(name: str) -> None:
    counter = CompileCounterWithBackend(name)
    lr = torch.tensor(0.1)
    path, lr_after = train(lr, backend=counter)
    assert lr_after is lr
    assert counter.frame_count == 1
    assert path == pytest.approx(train(0.1)[0], rel=1e-5)


def test_a_float_learning_rate_is_compiled_more_than_once() -> None:
    counter = CompileCounterWithBackend("eager")
    train(0.1, backend=counter)
    assert counter.frame_count > 1
