"""Mixed precision: a step that the gradient scaler skipped is no step for the scheduler."""

from torch.amp import GradScaler


def update_scaler(scaler: GradScaler) -> bool:
    """Call `scaler.update()`; returns whether the optimizer's step was made.

    The scaler skips the step when a gradient is infinite or NaN, and then lowers its scale: that
    is how it is seen, whatever the optimizer, fused ones included. It is to be called in the
    place of `scaler.update()`::

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        if update_scaler(scaler):
            scheduler.step(loss)

    Several optimizers of one scaler count as one: it is false if any of them was skipped. Fused
    optimizers leave the gradients scaled; call `scaler.unscale_(optimizer)` before the step if the
    scheduler observes gradients.

    Args:
        scaler: the scaler that made the step; a disabled one skips nothing.

    >>> update_scaler(GradScaler("cpu", enabled=False))
    True
    """
    before = scaler.get_scale()
    scaler.update()
    return scaler.get_scale() >= before
