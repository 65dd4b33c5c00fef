"""The memory of a recurrent policy: one LSTM cell in plain arrays."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def lstm_step(weight: Array, bias: Array, inputs: Array, memory: Array) -> Array:
    """Read one input, update the memory in place, and return the new hidden values.

    With [i, f, g, o] = [x, h] W + b, s the logistic function and products taken elementwise::

        c <- s(f) c + s(i) tanh(g)
        h <- s(o) tanh(c)

    Args:
        weight: W, (inputs + units, 4 x units): the rows of x, then those of h.
        bias: b, (4 x units,).
        inputs: x, (inputs,), or (B, inputs) for B runs at once.
        memory: h and c, (2, units) or (2, B, units).

    References:
        Sepp Hochreiter and Juergen Schmidhuber, "Long Short-Term Memory", 1997; with the forget
        gate of Felix Gers, Juergen Schmidhuber and Fred Cummins, "Learning to Forget: Continual
        Prediction with LSTM", 2000.
    """
    hidden: Array = memory[0]
    cell: Array = memory[1]
    units = hidden.shape[-1]
    gates = np.concatenate((inputs, hidden), axis=-1) @ weight + bias
    # s(x) = (1 + tanh(x / 2)) / 2, which cannot overflow
    keep = 0.5 + 0.5 * np.tanh(0.5 * gates[..., : 2 * units])
    show = 0.5 + 0.5 * np.tanh(0.5 * gates[..., 3 * units :])
    cell *= keep[..., units:]
    cell += keep[..., :units] * np.tanh(gates[..., 2 * units : 3 * units])
    np.multiply(show, np.tanh(cell), out=hidden)
    return hidden
