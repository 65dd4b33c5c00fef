"""Step-size caps of f(W, H) = 1/2 ||V - W H||^2 (V: m x n, W: m x r, H: r x n).

R = W H - V, G_W = R H^T, G_H = W^T R, P(x) = max(x, 0), ||.|| is the Frobenius norm and ||.||_2 the
spectral one. A projected step is x <- P(x - eta g), gbar = (x - x+)/eta. All formulas are derived
from first principles; they are not claimed to be those of the ICLR 2023 paper on the learning rate
of stochastic NMF. Tensors are float32 or float64; leading dimensions are a batch of instances, and
a cap has the batch's shape.

Without noise, a step at a cap does not raise f. With noise it is bounded, not beaten: f falls up to
a term of order eta sigma^2. A cap holds for the state that it was computed on: refresh it at every
step, or use `joint_ball_cap` with `project_ball`, which holds as long as the iterates stay in the
balls. Caps are for exact arithmetic: leave 2 - c well above the rounding error (1e-4 in float32).
They are never infinite, so that eta * 0 = 0 where f is flat. In all of them `c` is eta L, in
(0, 2), and `bound`, one of `BOUNDS`, says how spectral norms are bounded; arguments that are not
finite, or whose norms overflow, are a ValueError.
"""

import torch
from torch import Tensor

from lrpilot.arguments import require_choice

BOUNDS = ("spectral", "frobenius", "gram_rows")


def squared_norm_bound(x: Tensor, *, bound: str) -> Tensor:
    """An upper bound of ||x||_2^2, of the batch's shape, for x (..., p, q).

    With M the smaller Gram matrix of x: spectral lambda_max(M), exact (never power iteration, which
    bounds from below); frobenius tr M; gram_rows max_i sum_j |M_ij|.

    Raises:
        ValueError: if `bound` is unknown.

    >>> x = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    >>> [round(squared_norm_bound(x, bound=bound).item(), 3) for bound in BOUNDS]
    [10.606, 14.0, 12.0]
    """
    require_choice("bound", bound, BOUNDS)
    if bound == "frobenius":
        return _norm(x).square()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    if bound == "gram_rows":
        return gram.abs_().sum(-1).amax(-1)
    finite = gram.isfinite().all(-1).all(-1)
    top = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0.0))[..., -1]
    return torch.where(finite, top.clamp(min=0.0), torch.nan)


def block_cap(other: Tensor, *, c: float = 1.0, bound: str = "gram_rows") -> Tensor:
    """The cap eta = c / L, L = ||other||_2^2, of the block whose gradient is R other^T.

    `other` is H (..., r, n) for a step of W, and W^T (or W: the norm is the same) for a step of H.

    f+ <= f - eta (1 - c/2) ||gbar||^2, plain or projected. It is tight: above 2/L, f rises along
    the top eigenvector. It certifies alternating updates alone, in which one block moves and the
    next cap sees it: f may rise though both blocks' simultaneous steps are safe by themselves.

    >>> block_cap(torch.tensor([[3.0, 4.0]]))
    tensor(0.0400)
    """
    return _checked(c / _positive(squared_norm_bound(other, bound=bound)), other=other)


def joint_ball_cap(
    v: Tensor, radius_w: Tensor, radius_h: Tensor, *, c: float = 1.0, bound: str = "gram_rows"
) -> Tensor:
    """The cap c / (B_W^2 + B_H^2 + B_W B_H + ||V||_2) while ||W|| <= B_W and ||H|| <= B_H.

    Holds for simultaneous and alternating steps that end in `project_ball` with the same radii,
    from iterates >= 0 in the balls, with no refresh: f+ <= f - eta (1 - c/2) ||gbar||^2.
    The radii are positive, of the batch's shape.

    >>> joint_ball_cap(torch.tensor([[2.0]]), torch.tensor(1.0), torch.tensor(1.0))
    tensor(0.2000)
    """
    norm = squared_norm_bound(v, bound=bound).sqrt()
    curvature = radius_w * radius_w + radius_h * radius_h + radius_w * radius_h + norm
    return _checked(c / _positive(curvature), v=v, radius_w=radius_w, radius_h=radius_h)


def project_ball(x: Tensor, radius: Tensor) -> Tensor:
    """The nearest point to a finite x (..., p, q) in {y >= 0, ||y|| <= radius}: clip, then scale.

    >>> project_ball(torch.tensor([[6.0, -1.0, 8.0]]), torch.tensor(5.0))
    tensor([[3., 0., 4.]])
    """
    clipped = x.clamp(min=0.0)
    scale = (radius / _positive(_norm(clipped))).clamp(max=1.0)
    return clipped * scale[..., None, None]


def segment_cap(
    w: Tensor,
    h: Tensor,
    gradients: tuple[Tensor, Tensor],
    loss: Tensor,
    *,
    c: float = 1.0,
    bound: str = "frobenius",
    noise_lengths: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The largest eta with eta L(eta) <= c, L the curvature along the whole joint step.

    With a, b, d, p, q bounds of ||W||_2, ||H||_2, ||R||, ||G_W||, ||G_H||::

        L(eta) = (a + eta p)^2 + (b + eta q)^2 + d + eta (p b + a q) + eta^2 p q

    certifies f+ <= f - eta (1 - c/2) ||gbar||^2 for simultaneous (and alternating) projected steps
    from this state. eta is below the root by at most 0.5 % (1 % with noise). A refresh costs 20 to
    30 % of an inner step (256 runs of 40 x 40 rank 5, one CPU thread) with Frobenius norms, about
    45 % with Gram row sums.

    The gradients (G_W, G_H) are those without noise, the loss is all of f, not a minibatch's: d is
    sqrt(2 f). `noise_lengths` says how long the noise of each gradient can be, known before it is
    drawn; p and q grow by it (a shortened noisy gradient keeps such a bound, but is biased).

    >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    >>> segment_cap(one, one, (zero, zero), torch.tensor(0.0), c=1.5)  # c / (||W||^2 + ||H||^2)
    tensor(0.7500)
    """
    p, q = map(_norm, gradients)
    if noise_lengths is not None:
        p, q = p + noise_lengths[0], q + noise_lengths[1]
    a, b = _norm_bound(w, bound), _norm_bound(h, bound)
    d = (2 * loss).sqrt()
    start = _positive(torch.addcmul(torch.addcmul(d, a, a), b, b))
    # In x = unit / eta, eta L(eta) = c reads x^3 = x^2 + beta x + gamma: one root, at least 1.
    unit = c * (1 - 16 * torch.finfo(w.dtype).eps) / start
    p, q = p * unit, q * unit
    both = a + b
    beta = torch.addcmul(p * (a + both), q, b + both) / start
    gamma = torch.addcmul(p * (p + q), q, q) / start
    # x -> 1/2 + sqrt(1/4 + beta + gamma/x) falls in x and has this root: from 1 it jumps from side
    # to side, halving the logarithm of the error or better; odd steps end on the certified side.
    # Without noise p <= d b and q <= d a, so that gamma is below 1 and three steps are enough.
    num_steps = 3 if noise_lengths is None else 9
    quarter, half = beta + 0.25, torch.full_like(beta, 0.5)
    x = (quarter + gamma).sqrt_().add_(half)
    for _ in range(num_steps - 1):
        x = torch.addcdiv(quarter, gamma, x).sqrt_().add_(half)
    return _checked(unit / x, w=w, h=h, gradient_w=gradients[0], gradient_h=gradients[1], loss=loss)


def line_oracle(w: Tensor, h: Tensor, v: Tensor, direction: tuple[Tensor, Tensor]) -> Tensor:
    """The best eta >= 0 of a plain joint step: argmin of f(W - eta D_W, H - eta D_H).

    With A = D_W H + W D_H and B = D_W D_H this is the quartic ::

        f(eta) - f(0) = -eta <R,A> + eta^2 (||A||^2/2 + <R,B>) - eta^3 <A,B> + eta^4 ||B||^2/2

    minimized over the roots of its derivative, in float64; 0 where f does not fall along D.
    `direction` is (D_W, D_H): the gradients, or noisy ones.

    >>> w, h, v = torch.eye(1), torch.zeros(1, 1), torch.eye(1)
    >>> line_oracle(w, h, v, (torch.zeros(1, 1), -torch.eye(1)))  # f = (1 - eta)^2 / 2
    tensor(1.)
    """
    left, right = w.double(), h.double()
    residual = left @ right - v.double()
    gradient_w, gradient_h = (part.double() for part in direction)
    first, second = gradient_w @ right + left @ gradient_h, gradient_w @ gradient_h
    slope = (residual * first).sum((-2, -1)).clamp(min=0.0)
    square = first.square().sum((-2, -1))
    _checked(slope, strict=False, w=w, h=h, v=v)
    # t = eta / unit, unit the best step of the Gauss-Newton part; then f / (slope unit) is
    # -t + quadratic t^2 - cubic t^3 + quartic t^4, all dimensionless.
    inverse = 1 / _positive(square)
    unit = slope * inverse
    quadratic = (0.5 + inverse * (residual * second).sum((-2, -1)))[..., None]
    cubic = (unit * inverse * (first * second).sum((-2, -1)))[..., None]
    quartic = (unit.square() * inverse * second.square().sum((-2, -1)) / 2)[..., None]
    # Critical points in y = 1/t: y^3 - 2 quadratic y^2 + 3 cubic y - 4 quartic = 0 is monic, so
    # a quartic that degenerates needs no special case.
    companion = torch.zeros(*slope.shape, 3, 3, dtype=torch.float64, device=w.device)
    companion[..., 0, :] = torch.cat((2 * quadratic, -3 * cubic, 4 * quartic), -1)
    companion[..., 1, 0] = companion[..., 2, 1] = 1.0
    y = torch.linalg.eigvals(companion).real
    t = torch.where(y > 0.0, 1 / _positive(y), 0.0)
    loss = t * (-1 + t * (quadratic + t * (t * quartic - cubic)))
    best = t.gather(-1, loss.argmin(-1, keepdim=True)).squeeze(-1)
    largest = torch.finfo(w.dtype).max
    return (best * unit).clamp(max=largest).to(w.dtype)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1))
    return norm


def _norm_bound(x: Tensor, bound: str) -> Tensor:
    # without squaring, where the bound needs no square
    return _norm(x) if bound == "frobenius" else squared_norm_bound(x, bound=bound).sqrt()


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _checked(value: Tensor, *, strict: bool = True, **arguments: Tensor) -> Tensor:
    """The value, if finite and positive (or zero unless `strict`); else the argument to blame."""
    low, high = (end.item() for end in value.aminmax())
    if (low > 0.0 or (low == 0.0 and not strict)) and high < float("inf"):
        return value
    for name, argument in arguments.items():
        bad = argument[~argument.isfinite()]
        if bad.numel():
            raise ValueError(f"`{name}` must be finite, got {bad[0].item()}")
    names = ", ".join(f"`{name}`" for name in arguments)
    raise ValueError(f"{names} must have norms in the range of {value.dtype}, got a result {high}")
