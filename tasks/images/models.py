"""Networks that classify images: `model(channels, num_classes)` makes one.

`channels` are those of the images; the output, (batch, num_classes), are logits. `normalization`
is one switch in all of them: "none", "batch", "group" (groups of at least 16 channels, Wu and He's
setting) or "layer" (all channels, and pixels, of an image together). A layer that is normalized has
no bias of its own. Arguments out of range and unknown names are a ValueError.

References:
    Ioffe, Szegedy. Batch normalization: accelerating deep network training by reducing internal
    covariate shift. 2015.
    Wu, He. Group normalization. 2018.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from lrpilot.arguments import require_choice, require_count

NORMALIZATIONS = ("none", "batch", "group", "layer")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
SMALLEST_GROUP = 16


def small_cnn(channels: int, num_classes: int, *, normalization: str = "none") -> nn.Module:
    """Three 3x3 convolutions, the mean over the image, and a linear layer; any image size.

    16, 32 and 32 channels with strides 2, 2 and 1: 14,666 parameters for CIFAR-10.
    """
    return nn.Sequential(
        *_block(channels, 16, normalization, stride=2),
        *_block(16, 32, normalization, stride=2),
        *_block(32, 32, normalization),
        MeanOverImage(),
        nn.Linear(32, num_classes),
    )


def lenet(channels: int, num_classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling for 32 x 32 images: 62,006 parameters for CIFAR-10.

    References:
        LeCun, Bottou, Bengio, Haffner. Gradient-based learning applied to document
        recognition. 1998.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def mlp(
    channels: int,
    num_classes: int,
    *,
    image_size: int,
    depth: int = 2,
    width: int = 256,
    activation: str = "relu",
    normalization: str = "none",
) -> nn.Module:
    """Fully connected layers on the pixels: `depth` hidden layers of `width` units.

    `image_size` are the pixels per side; `activation`, after the normalization, is "relu", "gelu",
    "silu" or "tanh".

    >>> [tuple(p.shape) for p in mlp(1, 10, image_size=8, depth=1, width=32).parameters()]
    [(32, 64), (32,), (10, 32), (10,)]
    """
    require_count("depth", depth)
    require_count("width", width)
    require_choice("activation", activation, tuple(ACTIVATIONS))
    layers: list[nn.Module] = [nn.Flatten()]
    num_inputs = channels * image_size**2
    for _ in range(depth):
        layers += [
            nn.Linear(num_inputs, width, bias=normalization == "none"),
            *_normalization(nn.BatchNorm1d, width, normalization),
            ACTIVATIONS[activation](),
        ]
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_classes))


def resnet9(
    channels: int,
    num_classes: int,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    normalization: str = "batch",
) -> nn.Module:
    """The nine-layer residual network of the CIFAR-10 speed records; images of at least 8 x 8.

    Four 3x3 convolutions, the last three followed by 2x2 max-pooling, the second and the fourth by
    a residual pair of convolutions too; then the maximum over the image and a linear layer without
    bias, whose output is multiplied by 1/8. 6,573,120 parameters for CIFAR-10.

    `widths` are the channels of the four convolutions.

    References:
        Coleman et al. DAWNBench: an end-to-end deep learning benchmark and competition. 2017.
        Page. How to train your ResNet. 2018.
        He, Zhang, Ren, Sun. Deep residual learning for image recognition. 2016.
    """
    _check_widths(widths)
    block = partial(_block, normalization=normalization)

    def residual(width: int) -> nn.Module:
        return Residual(nn.Sequential(*block(width, width), *block(width, width)))

    first, second, third, fourth = widths
    return nn.Sequential(
        *block(channels, first),
        *block(first, second),
        nn.MaxPool2d(2),
        residual(second),
        *block(second, third),
        nn.MaxPool2d(2),
        *block(third, fourth),
        nn.MaxPool2d(2),
        residual(fourth),
        MaxHead(fourth, num_classes, scale=0.125),
    )


def resnet18(
    channels: int,
    num_classes: int,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    normalization: str = "batch",
) -> nn.Module:
    """ResNet-18 for small images: the first convolution is 3x3, and nothing is pooled before it.

    Four stages of two residual blocks, each of two 3x3 convolutions; all stages but the first
    begin with stride 2; then the mean over the image and a linear layer. 11,173,962 parameters for
    CIFAR-10.

    `widths` are the channels of the four stages.

    References:
        He, Zhang, Ren, Sun. Deep residual learning for image recognition. 2016.
    """
    _check_widths(widths)
    num_inputs = widths[0]
    layers = _block(channels, num_inputs, normalization)
    for width, first_stride in zip(widths, (1, 2, 2, 2), strict=True):
        for stride in (first_stride, 1):
            branch = nn.Sequential(
                *_block(num_inputs, width, normalization, stride=stride),
                *_convolution(width, width, normalization),
            )
            shortcut: list[nn.Module] = []
            if stride > 1 or num_inputs != width:
                shortcut = _convolution(num_inputs, width, normalization, stride=stride, size=1)
            layers += [Residual(branch, *shortcut), nn.ReLU()]
            num_inputs = width
    head = nn.Linear(num_inputs, num_classes)
    return nn.Sequential(*layers, MeanOverImage(), head)


class Residual(nn.Module):
    """The sum of a branch and of a shortcut around it: some modules, or none."""

    def __init__(self, branch: nn.Module, *shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = self.shortcut(x) + self.branch(x)
        return out


class MeanOverImage(nn.Module):
    """The mean of each channel: what `nn.AdaptiveAvgPool2d(1)` gives, for any memory layout.

    Torch's cannot be mapped by `torch.func.vmap` where the runs' channels lie last in memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch, channels) of (batch, channels, height, width)."""
        return x.mean((2, 3))


class MaxHead(nn.Module):
    """Logits `scale * W m`, where m is the maximum of each channel over the image."""

    def __init__(self, num_inputs: int, num_classes: int, *, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_classes, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of features (batch, channels, height, width)."""
        out: Tensor = self.scale * self.linear(x.amax((2, 3)))
        return out


def _convolution(
    num_inputs: int, width: int, normalization: str, *, stride: int = 1, size: int = 3
) -> list[nn.Module]:
    bias = normalization == "none"
    return [
        nn.Conv2d(num_inputs, width, size, stride=stride, padding=size // 2, bias=bias),
        *_normalization(nn.BatchNorm2d, width, normalization),
    ]


def _block(num_inputs: int, width: int, normalization: str, *, stride: int = 1) -> list[nn.Module]:
    return [*_convolution(num_inputs, width, normalization, stride=stride), nn.ReLU()]


def _normalization(
    batch_norm: type[nn.BatchNorm1d | nn.BatchNorm2d], width: int, kind: str
) -> list[nn.Module]:
    require_choice("normalization", kind, NORMALIZATIONS)
    if kind == "none":
        return []
    if kind == "batch":
        return [batch_norm(width)]
    most = 1 if kind == "layer" else max(1, width // SMALLEST_GROUP)
    num_groups = next(count for count in range(most, 0, -1) if width % count == 0)
    return [nn.GroupNorm(num_groups, width)]


def _check_widths(widths: Sequence[int]) -> None:
    if len(widths) != 4 or min(widths) < 1:
        raise ValueError(f"`widths` must be four numbers of at least 1, got {list(widths)}")
