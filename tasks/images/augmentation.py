"""Random crops and flips of a minibatch, as one tensor operation on its device."""

import torch
from torch import Tensor

PADDING_MODES = ("reflect", "zeros")


def draw_crops(num_images: int, *, padding: int, generator: torch.Generator) -> Tensor:
    """Random numbers for `crop_and_flip`: top and left of each crop, and whether it is mirrored.

    Args:
        num_images: N.
        padding: pixels p; top and left are uniform on 0 ... 2 p.
        generator: source of the numbers.

    Returns:
        Tensor (3, N), int64, on the generator's device; the last row is 0 or 1.
    """
    device = generator.device
    corners = torch.randint(0, 2 * padding + 1, (2, num_images), generator=generator, device=device)
    flips = torch.randint(0, 2, (1, num_images), generator=generator, device=device)
    return torch.cat([corners, flips])


def crop_and_flip(
    images: Tensor, crops: Tensor, *, padding: int, padding_mode: str = "reflect"
) -> Tensor:
    """Pad each image, cut a window of its own size out of it, and mirror some from left to right.

    With the padded image P of image n, t = crops[0, n] and l = crops[1, n], the result is
    y[c, i, j] = P[c, t + i, l + j], or P[c, t + i, l + W - 1 - j] if crops[2, n] is 1. No padded
    copy is made: the pixels are gathered from the images.

    Args:
        images: (N, C, H, W).
        crops: from `draw_crops` with the same padding, on the images' device.
        padding: pixels on each side, below H and W.
        padding_mode: "reflect" mirrors the image at its outermost pixels, "zeros" adds zeros,
            which in normalized images are the mean color.

    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> crop_and_flip(image, torch.tensor([[0], [1], [1]]), padding=1)
    tensor([[[[4., 3.],
              [2., 1.]]]])
    """
    height, width = images.shape[2:]
    top, left, flip = crops.unsqueeze(2)
    rows = torch.arange(height, device=images.device) + top - padding
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip == 1, width - 1 - columns, columns) + left - padding
    source = _reflect(rows, height).unsqueeze(2) * width + _reflect(columns, width).unsqueeze(1)
    index = source.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    cropped = images.flatten(2).gather(2, index).view(images.shape)
    if padding_mode == "reflect":
        return cropped
    is_row = (rows >= 0) & (rows < height)
    is_column = (columns >= 0) & (columns < width)
    is_inside = is_row.unsqueeze(2) & is_column.unsqueeze(1)
    return torch.where(is_inside.unsqueeze(1), cropped, 0.0)


def _reflect(positions: Tensor, size: int) -> Tensor:
    last = size - 1
    return last - (last - positions.abs()).abs()
