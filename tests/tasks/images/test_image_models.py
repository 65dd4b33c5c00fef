from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpilot.tasks.images.models import NORMALIZATIONS, lenet, mlp, resnet9, resnet18, small_cnn

NARROW = (4, 6, 8, 10)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "mlp": partial(mlp, image_size=8, width=32),
    "resnet9": partial(resnet9, widths=NARROW),
    "resnet18": partial(resnet18, widths=NARROW),
}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def images(num_images: int = 6, channels: int = 1, size: int = 8) -> Tensor:
    shape = (num_images, channels, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (small_cnn, 14_666),
        (lenet, 62_006),
        (resnet9, 6_573_120),
        (resnet18, 11_173_962),
        # each of 256 units has its weights and two numbers of the normalization, or one bias
        (partial(mlp, image_size=32), 3072 * 256 + 256 * 256 + 256 * 10 + 2 * 256 + 10),
        (
            partial(mlp, image_size=32, depth=1, normalization="group"),
            3072 * 256 + 256 * 10 + 2 * 256 + 10,
        ),
    ],
)
def test_parameter_count_for_cifar10(model: Callable[..., nn.Module], expected: int) -> None:
    assert num_parameters(model(3, 10)) == expected


@pytest.mark.parametrize("model", [small_cnn, lenet, partial(mlp, image_size=32)])
def test_models_map_images_to_one_logit_per_class(model: Callable[..., nn.Module]) -> None:
    assert model(3, 7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("size", [8, 28, 32, 33])
@pytest.mark.parametrize("name", ["small_cnn", "resnet9", "resnet18"])
def test_convolutional_networks_take_any_image_size(name: str, size: int) -> None:
    assert MODELS[name](3, 10)(images(2, 3, size)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_normalization_gives_finite_logits_and_gradients(
    name: str, normalization: str
) -> None:
    model = MODELS[name](1, 10, normalization=normalization)
    logits = model(images())
    logits.logsumexp(1).sum().backward()

    assert logits.shape == (6, 10)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_batch_normalization_alone_has_buffers(name: str) -> None:
    has_buffers = {
        kind: bool(list(MODELS[name](1, 10, normalization=kind).buffers()))
        for kind in NORMALIZATIONS
    }

    assert has_buffers == {"none": False, "batch": True, "group": False, "layer": False}


@pytest.mark.parametrize("normalization", ["group", "layer"])
@pytest.mark.parametrize("name", MODELS)
def test_without_batch_statistics_an_image_is_classified_alike_in_any_batch(
    name: str, normalization: str
) -> None:
    model = MODELS[name](1, 10, normalization=normalization).double()
    batch = images().double()

    torch.testing.assert_close(model(batch)[:1], model(batch[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "num_groups"), [(16, 1), (64, 4), (96, 6), (512, 32), (37, 1)])
def test_a_group_has_at_least_sixteen_channels(width: int, num_groups: int) -> None:
    model = mlp(1, 10, image_size=8, width=width, normalization="group")
    groups = [m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)]

    assert groups == [num_groups, num_groups]


def test_layer_normalization_of_features_is_torchs() -> None:
    model = mlp(1, 10, image_size=8, depth=1, width=48, normalization="layer")
    assert isinstance(model, nn.Sequential)
    flatten, linear, norm, *_ = model
    features = linear(flatten(images()))

    torch.testing.assert_close(norm(features), nn.functional.layer_norm(features, (48,)))


@pytest.mark.parametrize("normalization", ["batch", "group", "layer"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_normalized_has_no_bias_of_its_own(name: str, normalization: str) -> None:
    model = MODELS[name](1, 10, normalization=normalization)
    *hidden, _last = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    assert all(layer.bias is None for layer in hidden)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("relu", nn.ReLU), ("gelu", nn.GELU), ("silu", nn.SiLU), ("tanh", nn.Tanh)],
)
def test_mlp_has_the_given_depth_and_activation(activation: str, expected: type[nn.Module]) -> None:
    model = mlp(1, 10, image_size=8, depth=3, width=5, activation=activation)

    assert sum(isinstance(module, expected) for module in model.modules()) == 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("normalization", ["none", "group"])
def test_models_take_torch_func_transforms_over_stacked_runs(name: str, normalization: str) -> None:
    models = [MODELS[name](1, 10, normalization=normalization).double() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    batches = torch.stack([images().double() + i for i in range(3)])

    def logits(*state: Any) -> Tensor:
        *of_model, batch = state
        result: Tensor = torch.func.functional_call(models[0], tuple(of_model), (batch,))
        return result

    stacked = torch.func.vmap(logits)(parameters, buffers, batches)
    expected = torch.stack([model(x) for model, x in zip(models, batches, strict=True)])

    torch.testing.assert_close(stacked, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_normalization_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"`normalization` must be one of .*'none'.*got 'instance'"
    ):
        MODELS[name](1, 10, normalization="instance")


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`activation` must be one of .*'relu'.*got 'step'"):
        mlp(1, 10, image_size=8, activation="step")


@pytest.mark.parametrize("name", ["depth", "width"])
def test_an_mlp_without_layers_or_units_is_refused(name: str) -> None:
    sizes: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        mlp(1, 10, image_size=8, **sizes)


@pytest.mark.parametrize("model", [resnet9, resnet18])
@pytest.mark.parametrize("widths", [(8, 8, 8), (8, 8, 8, 0), ()])
def test_widths_are_four(model: Callable[..., nn.Module], widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`widths` must be four numbers of at least 1"):
        model(3, 10, widths=widths)
