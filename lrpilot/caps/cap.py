"""Step-size caps: what a controller may never exceed.

The functions below bound eta for f(W, H) = 1/2 ||V - W H||^2 (V: m x n, W: m x r, H: r x n), with
R = W H - V, G_W = R H^T, G_H = W^T R, P(x) = max(x, 0), ||.|| Frobenius and ||.||_2 spectral. A
projected step is x <- P(x - eta g), gbar = (x - x+)/eta. All formulas are derived from first
principles; they are not claimed to be those of the ICLR 2023 paper on the learning rate of
stochastic NMF. Tensors are float32 or float64, leading dimensions are a batch of instances, and a
cap is (eta_max of the batch's shape, guarantee), the latter one of

- deterministic: a noise-free step does not raise f;
- expected: the step does not raise E f, under the noise model that the cap states;
- stationary: noise is bounded, not beaten: f falls up to a term of order eta sigma^2;
- estimate: measured, or held beyond the state that it was computed on.

A certificate is for that state only. Refresh it at every step, or use `joint_ball_cap` with
`project_ball`, which holds as long as the iterates stay in the balls. Caps are for exact
arithmetic: leave 2 - c well above the rounding error (1e-4 in float32). They are never infinite,
so that eta * 0 = 0 where f is flat.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Cap = Callable[[], tuple[float, str]]
"""Asked before every optimizer step: the largest learning rate, and the name of its guarantee.

A cap reads the state of the run through its closure, and must not depend on the minibatch of
the step that it bounds, or expectations over that minibatch no longer hold. Guarantees are
named as in `"deterministic"`, `"expected"`, `"stationary"` or `"estimate"`.
"""

BOUNDS = ("spectral", "frobenius", "gram_rows")
UPDATES = ("alternating", "simultaneous")
CAPS = ("block", "ball", "segment")


def ask_cap(cap: Cap) -> tuple[float, str]:
    """Ask a cap and check its answer.

    Raises:
        TypeError: if it is no function, or returns anything but the two values.
        ValueError: if the largest learning rate is not positive.

    >>> ask_cap(lambda: (0.5, "estimate"))
    (0.5, 'estimate')
    """
    answer = cap() if callable(cap) else cap
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(
            f"`cap` must be a function that returns (largest lr, name of guarantee), got {answer!r}"
        )
    eta_max, guarantee = float(answer[0]), answer[1]
    if not eta_max > 0.0:
        raise ValueError(f"`cap` must return a positive learning rate, got {eta_max}")
    return eta_max, guarantee


def name_guarantee(guarantee: str, *, steps_held: int) -> str:
    """The guarantee of a cap that was computed `steps_held` steps ago.

    >>> name_guarantee("deterministic", steps_held=0), name_guarantee("expected", steps_held=4)
    ('deterministic', 'estimate')
    """
    return guarantee if steps_held == 0 else "estimate"


def check_update(update: str, *, cap: str) -> None:
    """Refuse block caps for simultaneous updates: f may rise though each block's step is safe.

    Args:
        update: "alternating" (one block moves, the next cap sees it) or "simultaneous".
        cap: "block", "ball" or "segment"; the last two certify both kinds of update.

    Raises:
        ValueError: if an argument is unknown or the pair is refused.

    >>> check_update("simultaneous", cap="segment")
    """
    if update not in UPDATES:
        raise ValueError(f"`update` must be one of {UPDATES}, got {update!r}")
    if cap not in CAPS:
        raise ValueError(f"`cap` must be one of {CAPS}, got {cap!r}")
    if (update, cap) == ("simultaneous", "block"):
        raise ValueError(
            "`update` must be 'alternating' for block caps, got 'simultaneous': use segment_cap or "
            "joint_ball_cap"
        )


def squared_norm_bound(x: Tensor, *, bound: str = "spectral") -> Tensor:
    """An upper bound of ||x||_2^2, of the batch's shape, for x (..., p, q).

    With M the smaller Gram matrix of x: spectral lambda_max(M), exact (never power iteration, which
    bounds from below); frobenius tr M; gram_rows max_i sum_j |M_ij|.

    Raises:
        ValueError: if x is not a finite floating-point matrix or `bound` is unknown.

    >>> x = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    >>> [round(squared_norm_bound(x, bound=bound).item(), 3) for bound in BOUNDS]
    [10.606, 14.0, 12.0]
    """
    return _squared_norm_of("x", x, bound)


def block_cap(
    other: Tensor, *, update: str, c: float = 1.0, bound: str = "spectral", noisy: bool = False
) -> tuple[Tensor, str]:
    """The cap eta = c / L, L = ||other||_2^2, of the block whose gradient is R other^T.

    f+ <= f - eta (1 - c/2) ||gbar||^2, plain or projected. It is tight: above 2/L, f rises along
    the top eigenvector.

    Args:
        other: H (..., r, n) for a step of W; W^T (or W: the norm is the same) for a step of H.
        update: "alternating"; "simultaneous" is refused, see `check_update`.
        c: eta L, in (0, 2).
        bound: one of `BOUNDS`, how L is bounded.
        noisy: whether the gradient is; then the guarantee is stationary.

    Raises:
        ValueError: if an argument is out of range, not finite or refused.

    >>> block_cap(torch.tensor([[3.0, 4.0]]), update="alternating")
    (tensor(0.0400), 'deterministic')
    """
    check_update(update, cap="block")
    _check_c(c)
    lipschitz = _squared_norm_of("other", other, bound)
    return _divide(c, lipschitz, other=other), "stationary" if noisy else "deterministic"


def relative_noise_cap(
    lipschitz: Tensor, rho: Tensor | float, *, c: float = 1.0, projected: bool = False
) -> tuple[Tensor, str]:
    """The cap eta = c / (L (1 + rho)) for unbiased noise with E||xi||^2 <= rho ||G||^2.

    Plain step: E f+ <= f - eta (1 - c/2) ||G||^2. A projected step has no such inequality: where
    the constraints hold G up (a KKT point with G != 0) noise alone raises f; so "stationary".

    Args:
        lipschitz: L of the batch's shape, from `squared_norm_bound` or 1 / `joint_ball_cap(c=1)`.
        rho: at least 0; exact at this state (`minibatch_noise`), or the guarantee is an estimate.
        c: in (0, 2).
        projected: whether the step is.

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> relative_noise_cap(torch.tensor(4.0), 1.0)
    (tensor(0.1250), 'expected')
    """
    _check_c(c)
    _check_sign("lipschitz", lipschitz)
    _check_sign("rho", rho)
    eta = _divide(c, lipschitz * (1 + rho), lipschitz=lipschitz, rho=rho)
    return eta, "stationary" if projected else "expected"


def one_step_cap(
    gradient: Tensor, other: Tensor, *, update: str, noise_std: Tensor | float, c: float = 1.0
) -> tuple[Tensor, str]:
    """The cap eta = c ||G||^2 / (||G H||^2 + s^2 m ||H||^2) for a plain step of one block.

    With i.i.d. noise of sd s per entry, E f+ - f = -eta ||G||^2 + eta^2/2 (the denominator), so
    E f+ < f if and only if c < 2, and c = 1 is the best step. It is 0 where G = 0.

    Args:
        gradient: G_W (..., m, r); for a step of H, G_H^T.
        other: H (..., r, n); for a step of H, W^T.
        update: "alternating"; "simultaneous" is refused.
        noise_std: s >= 0, a number or of the batch's shape.
        c: in (0, 2).

    Raises:
        ValueError: if an argument is out of range, not finite, refused or of the wrong shape.

    >>> one_step_cap(torch.ones(1, 1), torch.ones(1, 2), update="alternating", noise_std=1.0)
    (tensor(0.2500), 'expected')
    """
    check_update(update, cap="block")
    _check_c(c)
    _check_matrices(gradient=gradient, other=other)
    _check_shape("other", other, (*gradient.shape[:-2], gradient.shape[-1], other.shape[-1]))
    _check_sign("noise_std", noise_std)
    std = torch.as_tensor(noise_std, dtype=other.dtype, device=other.device)
    noise = std.square() * gradient.shape[-2] * _squared_norm(other, "frobenius")
    curvature = _squared_norm(gradient @ other, "frobenius") + noise
    eta = c * _squared_norm(gradient, "frobenius") / _positive(curvature)
    return _checked(eta, {"gradient": gradient, "other": other}, strict=False), "expected"


def joint_ball_cap(
    v: Tensor,
    radius_w: Tensor | float,
    radius_h: Tensor | float,
    *,
    c: float = 1.0,
    bound: str = "spectral",
) -> tuple[Tensor, str]:
    """The cap c / (B_W^2 + B_H^2 + B_W B_H + ||V||_2) while ||W|| <= B_W and ||H|| <= B_H.

    Holds for simultaneous and alternating steps that end in `project_ball` with the same radii,
    from iterates >= 0 in the balls, with no refresh: f+ <= f - eta (1 - c/2) ||gbar||^2.

    Args:
        v: (..., m, n).
        radius_w: B_W > 0, a number or of the batch's shape; so is `radius_h`.
        radius_h: B_H > 0.
        c: in (0, 2).
        bound: one of `BOUNDS`, for ||V||_2.

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> joint_ball_cap(torch.tensor([[2.0]]), 1.0, 1.0)
    (tensor(0.2000), 'deterministic')
    """
    _check_c(c)
    for name, radius in (("radius_w", radius_w), ("radius_h", radius_h)):
        _check_sign(name, radius, strict=True)
    norm = _squared_norm_of("v", v, bound).sqrt()
    curvature = radius_w * radius_w + radius_h * radius_h + radius_w * radius_h + norm
    return _divide(c, curvature, v=v, radius_w=radius_w, radius_h=radius_h), "deterministic"


def project_ball(x: Tensor, radius: Tensor | float) -> Tensor:
    """The nearest point to x (..., p, q) in {y >= 0, ||y|| <= radius}: clip, then scale.

    Raises:
        ValueError: if the radius is not positive or x not finite.

    >>> project_ball(torch.tensor([[6.0, -1.0, 8.0]]), 5.0)
    tensor([[3., 0., 4.]])
    """
    _check_matrices(x=x)
    _check_sign("radius", radius, strict=True)
    clipped = x.clamp(min=0.0)
    norm = _checked(torch.linalg.vector_norm(clipped, dim=(-2, -1)), {"x": x}, strict=False)
    scale = (torch.as_tensor(radius, dtype=x.dtype) / _positive(norm)).clamp(max=1.0)
    return clipped * scale[..., None, None]


def segment_cap(
    w: Tensor,
    h: Tensor,
    v: Tensor,
    *,
    c: float = 1.0,
    bound: str = "frobenius",
    projected: bool = True,
    residual: Tensor | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
    loss: Tensor | None = None,
    gradient_bounds: tuple[Tensor | float, Tensor | float] | None = None,
) -> tuple[Tensor, str]:
    """The largest eta with eta L(eta) <= c, L the curvature along the whole joint step.

    With a, b, d, p, q bounds of ||W||_2, ||H||_2, ||R||_2, ||G_W||, ||G_H||::

        L(eta) = (a + eta p)^2 + (b + eta q)^2 + d + eta (p b + a q) + eta^2 p q

    certifies f+ <= f - eta (1 - c/2) ||gbar||^2 for simultaneous (and alternating) steps from this
    state. eta is below the root by at most 0.5 % (1 % with `gradient_bounds`, or spectral). A
    refresh costs 20 to 30 % of an inner step (256 runs of 40 x 40 rank 5, one CPU thread) with
    Frobenius norms and shared gradients and loss, about 45 % with Gram row sums.

    Args:
        w: (..., m, r), not negative if `projected`.
        h: (..., r, n), likewise.
        v: (..., m, n).
        c: in (0, 2).
        bound: one of `BOUNDS`, for a and b; for d spectral, else Frobenius norms.
        projected: False lets p and q be spectral, too (clipping can raise the spectral norm).
        residual: R, if the step has already computed it at this state.
        gradients: (G_W, G_H), likewise.
        loss: f, likewise (all of it, not a minibatch's): d is then sqrt(2 f), which saves the most.
        gradient_bounds: p and q for noisy gradients: known before sampling, and never exceeded (a
            clipped gradient keeps them, but is biased). Then the guarantee is stationary.

    Raises:
        ValueError: if an argument is out of range, not finite or of the wrong shape.

    >>> one = torch.ones(1, 1)
    >>> segment_cap(one, one, one, c=1.5)  # at the solution: c / (||W||^2 + ||H||^2)
    (tensor(0.7500), 'deterministic')
    """
    _check_c(c)
    _check_choice(bound)
    _check_matrices(w=w, h=h, v=v)
    _check_shape("h", h, (*w.shape[:-2], w.shape[-1], h.shape[-1]))
    _check_shape("v", v, (*w.shape[:-1], h.shape[-1]))
    if projected:
        _check_sign("w", w)
        _check_sign("h", h)
    given: dict[str, Tensor | float | None] = {"residual": residual, "loss": loss}
    for name, pair in (("gradients", gradients), ("gradient_bounds", gradient_bounds)):
        given |= {f"{name}[{i}]": value for i, value in enumerate(pair or ())}
    if residual is None and (loss is None or (gradients is None and gradient_bounds is None)):
        residual = w @ h - v
    if residual is not None:
        _check_shape("residual", residual, v.shape)
    cheap = "spectral" if bound == "spectral" else "frobenius"
    if gradient_bounds is None:
        if gradients is None:
            assert residual is not None
            gradients = residual @ h.mT, w.mT @ residual
        _check_shape("gradients[0]", gradients[0], w.shape)
        _check_shape("gradients[1]", gradients[1], h.shape)
        kind = "frobenius" if projected else cheap
        p, q = _norm(gradients[0], kind), _norm(gradients[1], kind)
    else:
        _check_sign("gradient_bounds[0]", gradient_bounds[0])
        _check_sign("gradient_bounds[1]", gradient_bounds[1])
        p, q = (torch.as_tensor(norm, dtype=w.dtype) for norm in gradient_bounds)
    a, b = _norm(w, bound), _norm(h, bound)
    if loss is None:
        assert residual is not None
        d = _norm(residual, cheap)
    else:
        _check_shape("loss", loss, w.shape[:-2])
        _check_sign("loss", loss)
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
    # With p <= d b and q <= d a, gamma is below 1 and three steps are enough.
    num_steps = 3 if cheap == "frobenius" and gradient_bounds is None else 9
    quarter, half = beta + 0.25, torch.full_like(beta, 0.5)
    x = (quarter + gamma).sqrt_().add_(half)
    for _ in range(num_steps - 1):
        x = torch.addcdiv(quarter, gamma, x).sqrt_().add_(half)
    eta = _checked(unit / x, {"w": w, "h": h, "v": v, **given})
    return eta, "deterministic" if gradient_bounds is None else "stationary"


def line_oracle(
    w: Tensor, h: Tensor, v: Tensor, *, direction: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, str]:
    """The best eta >= 0 of a plain joint step: argmin of f(W - eta D_W, H - eta D_H).

    D is the gradient G or another direction. With A = D_W H + W D_H and B = D_W D_H this is the
    quartic ::

        f(eta) - f(0) = -eta <R,A> + eta^2 (||A||^2/2 + <R,B>) - eta^3 <A,B> + eta^4 ||B||^2/2

    minimized over the roots of its derivative, in float64; 0 where f does not fall along D.

    Args:
        w: (..., m, r).
        h: (..., r, n).
        v: (..., m, n).
        direction: (D_W, D_H), of the shapes of w and h; default (G_W, G_H).

    Raises:
        ValueError: if an argument is not finite or of the wrong shape.

    >>> line_oracle(torch.eye(1), torch.zeros(1, 1), torch.eye(1))  # G_W = 0: f = (1 - eta)^2 / 2
    (tensor(1.), 'deterministic')
    """
    _check_matrices(w=w, h=h, v=v)
    _check_shape("h", h, (*w.shape[:-2], w.shape[-1], h.shape[-1]))
    _check_shape("v", v, (*w.shape[:-1], h.shape[-1]))
    left, right = w.double(), h.double()
    residual = left @ right - v.double()
    if direction is None:
        gradient_w, gradient_h = residual @ right.mT, left.mT @ residual
    else:
        _check_shape("direction[0]", direction[0], w.shape)
        _check_shape("direction[1]", direction[1], h.shape)
        gradient_w, gradient_h = (part.double() for part in direction)
    first, second = gradient_w @ right + left @ gradient_h, gradient_w @ gradient_h
    slope = (residual * first).sum((-2, -1)).clamp(min=0.0)
    square = first.square().sum((-2, -1))
    _checked(slope, {"w": w, "h": h, "v": v}, strict=False)
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
    return (best * unit).clamp(max=largest).to(w.dtype), "deterministic"


def minibatch_noise(
    residual: Tensor, other: Tensor, *, batch_size: int, replacement: bool = False
) -> tuple[Tensor, Tensor]:
    """(E||xi||^2, rho = E||xi||^2 / ||G||^2) of G_W from b of the n columns, (n/b) sum_j r_j h_j^T.

    With g_j = r_j h_j^T, E||xi||^2 = (n^2/b) (mean ||g_j||^2 - ||mean g_j||^2), times (n-b)/(n-1)
    without replacement; rho is 0 where the noise is. For H from b rows, pass R^T and W^T. Exact for
    this state; from a minibatch's residual it is an estimate, and so is a cap that uses it.

    Args:
        residual: R (..., m, n).
        other: H (..., r, n).
        batch_size: b, in [1, n].
        replacement: whether the columns are drawn with replacement.

    Raises:
        ValueError: if an argument is out of range, not finite or of the wrong shape.

    >>> minibatch_noise(torch.tensor([[3.0, 1.0]]), torch.ones(1, 2), batch_size=1)
    (tensor(4.), tensor(0.2500))
    """
    _check_matrices(residual=residual, other=other)
    n = residual.shape[-1]
    _check_shape("other", other, (*residual.shape[:-2], other.shape[-2], n))
    if not 1 <= batch_size <= n:
        raise ValueError(f"`batch_size` must be in [1, n = {n}], got {batch_size}")
    columns = (residual.square().sum(-2) * other.square().sum(-2)).sum(-1)
    squared_gradient = _squared_norm(residual @ other.mT, "frobenius")
    spread = (n * columns - squared_gradient).clamp(min=0.0)
    left = 1.0 if replacement else (n - batch_size) / max(n - 1, 1)
    noise = spread * (left / batch_size)
    _checked(noise, {"residual": residual, "other": other}, strict=False)
    rho = noise / _positive(squared_gradient)
    return noise, rho.clamp(max=torch.finfo(rho.dtype).max)


def stationary_excess(
    h: Tensor, eta: Tensor | float, noise_std: Tensor | float, num_rows: int
) -> Tensor:
    """E f - f* of W after many plain steps at constant eta < 2/L with noise of sd s per entry.

    (m s^2 eta / 2) sum_i 1 / (2 - eta lambda_i) over the eigenvalues lambda_i > 0 of H H^T.

    Args:
        h: (..., r, n); for the H block W^T.
        eta: in (0, 2/L), a number or of the batch's shape; so is `noise_std`.
        noise_std: s, at least 0.
        num_rows: m, rows of W (for the H block n).

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> stationary_excess(torch.ones(1, 1), 1.0, 2.0, 3)
    tensor(6.)
    """
    _squared_norm_of("h", h, "frobenius")
    _check_sign("eta", eta, strict=True)
    _check_sign("noise_std", noise_std)
    eta, std = (torch.as_tensor(x, dtype=h.dtype) for x in (eta, noise_std))
    eigenvalues = torch.linalg.eigvalsh(h @ h.mT)
    rank_tolerance = h.shape[-1] * torch.finfo(h.dtype).eps * eigenvalues[..., -1:]
    slack = 2 - eta[..., None] * eigenvalues
    if not bool((slack > 0.0).all()):
        raise ValueError(f"`eta` must be below 2/L, got eta L = {2 - slack.min().item():.6g}")
    terms = torch.where(eigenvalues > rank_tolerance, 1 / slack, 0.0)
    return num_rows * std.square() * eta / 2 * terms.sum(-1)


def _squared_norm(x: Tensor, bound: str) -> Tensor:
    if bound == "frobenius":
        return _norm(x, bound).square()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    if bound == "gram_rows":
        return gram.abs_().sum(-1).amax(-1)
    finite = gram.isfinite().all(-1).all(-1)
    top = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0.0))[..., -1]
    return torch.where(finite, top.clamp(min=0.0), torch.nan)


def _norm(x: Tensor, bound: str) -> Tensor:
    if bound == "frobenius":
        norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1))
        return norm
    return _squared_norm(x, bound).sqrt()


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _squared_norm_of(name: str, x: Tensor, bound: str) -> Tensor:
    """The bound of ||x||_2^2 for the argument of this name."""
    _check_matrices(**{name: x})
    _check_choice(bound)
    return _checked(_squared_norm(x, bound), {name: x}, strict=False)


def _divide(c: float, curvature: Tensor, **arguments: Tensor | float) -> Tensor:
    return _checked(c / _positive(curvature), arguments)


def _checked(
    value: Tensor, arguments: Mapping[str, Tensor | float | None], *, strict: bool = True
) -> Tensor:
    """The value, if finite and positive (or zero unless `strict`); else the argument to blame."""
    low, high = (end.item() for end in value.aminmax())
    if (low > 0.0 or (low == 0.0 and not strict)) and high < float("inf"):
        return value
    given = {name: x for name, x in arguments.items() if x is not None}
    for name, argument in given.items():
        entries = torch.as_tensor(argument, dtype=torch.float64)
        bad = entries[~entries.isfinite()]
        if bad.numel():
            raise ValueError(f"`{name}` must be finite, got {bad[0].item()}")
    names = ", ".join(f"`{name}`" for name in given)
    raise ValueError(f"{names} must have norms in the range of {value.dtype}, got a result {high}")


def _check_c(c: float) -> None:
    if not 0.0 < c < 2.0:
        raise ValueError(f"`c` must be in (0, 2), got {c}")


def _check_choice(bound: str) -> None:
    if bound not in BOUNDS:
        raise ValueError(f"`bound` must be one of {BOUNDS}, got {bound!r}")


def _check_matrices(**arguments: Tensor) -> None:
    for name, x in arguments.items():
        if x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"`{name}` must be a float32 or float64 matrix or a batch of them, got "
                f"{x.dtype} of shape {tuple(x.shape)}"
            )
    (first, x), *others = arguments.items()
    for name, other in others:
        if other.dtype != x.dtype:
            raise ValueError(f"`{name}` must be {x.dtype}, as `{first}` is, got {other.dtype}")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if x.shape != expected:
        raise ValueError(f"`{name}` must have shape {tuple(expected)}, got {tuple(x.shape)}")


def _check_sign(name: str, x: Tensor | float, *, strict: bool = False) -> None:
    low, high = (end.item() for end in x.aminmax()) if isinstance(x, Tensor) else (x, x)
    if not math.isfinite(high):
        raise ValueError(f"`{name}` must be finite, got {high}")
    if not (low > 0.0 or (low == 0.0 and not strict)):
        raise ValueError(
            f"`{name}` must {'be positive' if strict else 'not be negative'}, got {low}"
        )
