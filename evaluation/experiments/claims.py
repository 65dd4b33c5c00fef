"""The table of what a paper said and what was measured."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrpilot.evaluation.report import format_table, judge
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.statistics import MIN_SEEDS

TABLE_FILE = "table.md"
NO_FIGURE = "no figure"
"""Of a line that stands beside the paper's claims, and is not one of them."""


class Claim(NamedTuple):
    """A line of the table, each entry as it is printed."""

    name: str
    paper: str
    """What the paper said, or `NO_FIGURE`."""
    as_in_paper: str
    """What its own protocol gives here."""
    fair: str
    """What tuned initial learning rates and held-out losses give, with an interval."""
    verdict: str
    """What follows, in words."""


def claims_table(claims: Sequence[Claim], *, with_verdicts: bool = True) -> str:
    """The claims in Markdown.

    >>> print(claims_table([Claim("share", "86.7 %", "80.0 %", "50.0 % [38, 62]", "lower")]))
    | claim | paper said | we measured, paper's protocol | we measured, fair protocol | verdict |
    |-------|------------|-------------------------------|----------------------------|---------|
    | share |     86.7 % |                        80.0 % |            50.0 % [38, 62] |   lower |
    """
    header = ["claim", "paper said"]
    header += [f"we measured, {name} protocol" for name in ("paper's", "fair")]
    header += ["verdict"] * with_verdicts
    return format_table(header, [claim[: len(header)] for claim in claims])


def write_claims(
    output: Output, title: str, claims: Sequence[Claim], *, details: Sequence[str]
) -> None:
    """Write and print the table as `TABLE_FILE`; that of a quick version has no verdicts."""
    table = claims_table(claims, with_verdicts=not output.is_quick)
    output.write_table(title, table, name=TABLE_FILE, details=details)


def compared(losses: Sequence[float], others: Sequence[float], name: str) -> tuple[str, str]:
    """Losses minus those of another method, paired: the mean with its interval, and in words.

    >>> compared([0.5, 0.6, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.2, 0.1], "cosine")
    ('+0.4000 [+0.4000, +0.4000]', 'worse than cosine')
    """
    differences = [float(d) for d in np.subtract(losses, others)]
    judged = judge(differences, lower="better", higher="worse")
    if len(differences) < MIN_SEEDS:
        return judged.partition(",")[0], "too few for a verdict"
    interval, _, word = judged.rpartition(", ")
    return interval, f"{word} {'from' if word == 'not different' else 'than'} {name}"
