import math
import re
from typing import Any

import pytest

from lrpilot.caps.cap import ask_cap


def test_a_cap_is_asked_for_a_number_and_a_name() -> None:
    assert ask_cap(lambda: (0.5, "deterministic")) == (0.5, "deterministic")


@pytest.mark.parametrize("eta_max", [0.0, -1.0, math.nan])
def test_a_largest_learning_rate_that_is_not_positive_is_refused(eta_max: float) -> None:
    with pytest.raises(ValueError, match="must return a positive learning rate"):
        ask_cap(lambda: (eta_max, "estimate"))


@pytest.mark.parametrize("cap", [0.5, lambda: 0.5, lambda: (0.5,)])
def test_what_does_not_answer_as_a_cap_is_refused(cap: Any) -> None:
    message = "`cap` must be a function that returns (largest lr, name of guarantee), got"
    with pytest.raises(TypeError, match=re.escape(message)):
        ask_cap(cap)
