import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lrpilot.tasks.images.augmentation import PADDING_MODES, crop_and_flip, draw_crops


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crop_one_by_one(images: Tensor, crops: Tensor, padding: int, padding_mode: str) -> Tensor:
    height, width = images.shape[2:]
    mode = {"reflect": "reflect", "zeros": "constant"}[padding_mode]
    cropped = []
    for image, (top, left, flip) in zip(images, crops.T.tolist(), strict=True):
        padded = functional.pad(image, [padding] * 4, mode=mode)
        window = padded[:, top : top + height, left : left + width]
        cropped.append(window.flip(2) if flip else window)
    return torch.stack(cropped)


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(200, 3, 32, 32), (50, 1, 28, 28), (20, 2, 5, 7)])
def test_crops_and_flips_equal_a_loop_over_the_images(
    shape: tuple[int, ...], padding: int, padding_mode: str
) -> None:
    images = torch.randn(shape, generator=generator(1))
    crops = draw_crops(len(images), padding=padding, generator=generator(2))
    result = crop_and_flip(images, crops, padding=padding, padding_mode=padding_mode)

    assert torch.equal(result, crop_one_by_one(images, crops, padding, padding_mode))


def test_every_offset_and_both_orientations_are_about_equally_frequent() -> None:
    top, left, flip = draw_crops(90_000, padding=4, generator=generator())

    for offsets in (top, left):
        counts = offsets.bincount()
        assert len(counts) == 9
        assert ((counts - 10_000).abs() < 500).all()
    assert abs(int(flip.sum()) - 45_000) < 700


def test_draws_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (draw_crops(8, padding=4, generator=generator(3)) for _ in range(2))

    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_are_not_written_into() -> None:
    images = torch.randn(4, 3, 8, 8, generator=generator())
    before = images.clone()
    crops = draw_crops(4, padding=4, generator=generator())
    crop_and_flip(images, crops, padding=4, padding_mode="zeros").fill_(0.0)

    assert torch.equal(images, before)
