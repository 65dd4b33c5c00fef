"""Image tasks by `task=... task/model=...`."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate

from lrpilot.tasks.images.task import ImageRun, ImageTask

CONF = Path(__file__).resolve().parents[3] / "conf"
MODELS = sorted(path.stem for path in (CONF / "task" / "model").glob("*.yaml"))
IMAGE_TASKS = ("digits", "fashion_mnist", "cifar")


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("train_agent", list(overrides)).task


def built(*overrides: str) -> Any:
    return instantiate(composed(*overrides), _convert_="all")


@pytest.mark.slow
@pytest.mark.parametrize("task", IMAGE_TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_every_image_task_composes_with_every_model(task: str, model: str) -> None:
    image_task = built(f"task={task}", f"task/model={model}", "+task.augment=true")

    assert isinstance(image_task, ImageTask)
    assert image_task.augment
    assert getattr(image_task.model, "func").__name__ == model  # noqa: B009


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_the_default_is_the_small_cnn_without_augmentation(task: str) -> None:
    image_task = built(f"task={task}")

    assert image_task.model(3, 10)[0].bias is not None
    assert sum(p.numel() for p in image_task.model(3, 10).parameters()) == 14_666
    assert not image_task.augment


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("model", [name for name in MODELS if name != "lenet"])
def test_every_model_but_lenet_trains_on_digits_with_every_normalization(
    model: str, normalization: str
) -> None:
    overrides = ["task=digits", "+task.batch_size=4", f"+task.model.normalization={normalization}"]
    if model.startswith("resnet"):
        overrides.append("+task.model.widths=[4,4,8,8]")
    run = built(*overrides, f"task/model={model}").start(0)
    run.step()

    assert isinstance(run, ImageRun)
    assert run.num_steps == 1


def test_a_task_without_images_takes_no_model() -> None:
    with pytest.raises(ConfigCompositionException):
        composed("task=nmf", "task/model=resnet9")
