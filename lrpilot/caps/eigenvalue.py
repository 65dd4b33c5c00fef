"""The largest eigenvalue of a Hessian, from its products with vectors."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Eigenpair(NamedTuple):
    """An approximate eigenvalue of a symmetric matrix A, with what says how good it is."""

    value: float
    """x . A x, never above the largest eigenvalue."""
    vector: Tensor
    """x, of norm 1."""
    residual: float
    """||A x - value x||: an eigenvalue lies within this distance of the value."""
    num_products: int
    """Products with A that were made."""


def hessian_vector_product(
    gradient: Sequence[Tensor], parameters: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """H v, for the Hessian H of a loss whose gradient was made with `create_graph=True`.

    H v = d(g . v)/dw, by a second backward pass: about the cost of two gradients.

    Args:
        gradient: g, one tensor per parameter; a part without a graph is taken as constant.
        parameters: w.
        vector: v, flat, in the order of the parameters.

    Returns:
        H v, flat.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> g = torch.autograd.grad(w[0] ** 2 * w[1], w, create_graph=True)
    >>> hessian_vector_product(g, [w], torch.tensor([1.0, 0.0]))  # H = [[4, 2], [2, 0]]
    tensor([4., 2.])
    """
    parts = [
        part.view_as(parameter).to(parameter)
        for part, parameter in zip(
            vector.split([parameter.numel() for parameter in parameters]), parameters, strict=True
        )
    ]
    curved = [(g, part) for g, part in zip(gradient, parts, strict=True) if g.requires_grad]
    if not curved:
        return torch.zeros_like(vector)
    products = torch.autograd.grad(
        [g for g, _ in curved],
        parameters,
        [part for _, part in curved],
        retain_graph=True,
        materialize_grads=True,
    )
    return flatten(products, like=vector)


@torch.no_grad()
def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    max_products: int = 20,
    tolerance: float = 1e-2,
) -> Eigenpair:
    """The largest (not the largest absolute) eigenvalue of a symmetric matrix A, from A v alone.

    Power iteration with the best shift and momentum in every step: the next x maximises x . A x
    over the span of x, A x and the last change of x (block size 1 of LOBPCG). The step of plain
    power iteration, x + A x / s for any s, lies in that span, so that an indefinite A needs no
    shift. Six vectors of the size of `start` are held.

    Args:
        product: v -> A v, on flat vectors.
        start: where to begin, any norm but 0.
        max_products: products to make at most.
        tolerance: the residual over |value| at which to stop earlier.

    Raises:
        ValueError: if `start` is zero or not finite, or `max_products` is below 1.

    References:
        Knyazev. Toward the optimal preconditioned eigensolver: locally optimal block
        preconditioned conjugate gradient method. 2001.

    >>> a = torch.diag(torch.tensor([-9.0, 1.0, 4.0]))
    >>> round(largest_eigenvalue(lambda v: a @ v, torch.ones(3)).value, 4)
    4.0
    """
    if max_products < 1:
        raise ValueError(f"`max_products` must be at least 1, got {max_products}")
    norm = float(start.norm())
    if not 0.0 < norm < math.inf:
        raise ValueError(f"`start` must have a positive and finite norm, got {norm}")
    x = start / norm
    image = product(x)
    change: tuple[Tensor, Tensor] | None = None
    for num_products in range(1, max_products + 1):
        value = float(x @ image)
        rest = image - value * x
        residual = float(rest.norm())
        # a NaN ends the loop, too
        is_open = tolerance * abs(value) < residual < math.inf
        if not is_open or num_products == max_products:
            break
        rest = rest / residual
        rest = rest - (x @ rest) * x
        rest = rest / rest.norm()
        basis, images = [x, rest], [image, product(rest)]
        if change is not None:
            _extend(basis, images, *change)
        weights = _best_weights(basis, images)
        change = _combine(weights[1:], basis[1:]), _combine(weights[1:], images[1:])
        x, image = weights[0] * x + change[0], weights[0] * image + change[1]
        norm = float(x.norm())
        x, image = x / norm, image / norm
    return Eigenpair(value, x, residual, num_products)


def _extend(basis: list[Tensor], images: list[Tensor], vector: Tensor, image: Tensor) -> None:
    """Add the part of the vector that is new to the orthonormal basis, if rounding leaves one."""
    norm = vector.norm()
    for known, known_image in zip(basis, images, strict=True):
        weight = known @ vector
        vector, image = vector - weight * known, image - weight * known_image
    rest = vector.norm()
    if rest > 1e-3 * norm:
        basis.append(vector / rest)
        images.append(image / rest)


def _best_weights(basis: list[Tensor], images: list[Tensor]) -> list[float]:
    """The combination of an orthonormal basis whose Rayleigh quotient is largest."""
    small = torch.tensor([[float(b @ i) for i in images] for b in basis], dtype=torch.float64)
    if not bool(small.isfinite().all()):
        return [math.nan] * len(basis)
    weights: list[float] = torch.linalg.eigh((small + small.T) / 2).eigenvectors[:, -1].tolist()
    return weights


def _combine(weights: list[float], vectors: list[Tensor]) -> Tensor:
    products = [weight * vector for weight, vector in zip(weights, vectors, strict=True)]
    return sum(products[1:], products[0])


def flatten(tensors: Sequence[Tensor], *, like: Tensor) -> Tensor:
    """One vector of all entries, of the dtype and device of `like`."""
    return torch.cat([tensor.detach().reshape(-1).to(like) for tensor in tensors])
