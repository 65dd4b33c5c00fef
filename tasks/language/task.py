"""What the language tasks share: the sizes of a transformer."""

from dataclasses import dataclass

from lrpilot.tasks.networks.task import NetworkTask


@dataclass(frozen=True, kw_only=True)
class LanguageTask(NetworkTask):
    """Train a transformer on text; the loss is the mean cross-entropy, in nats.

    Args:
        num_layers: blocks of the transformer.
        num_heads: attention heads, a divisor of `width`.
        width: size of a token's representation.
        dropout: probability, drawn from the run's generator; on the embeddings and at the end of
            every branch, not on the attention weights.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
    """

    num_layers: int = 4
    num_heads: int = 4
    width: int = 128
    dropout: float = 0.0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("num_layers", "num_heads", "width")
        is_multiple = self.width % self.num_heads == 0
        self._require("width", is_multiple, f"be a multiple of `num_heads` = {self.num_heads}")
        self._require("dropout", 0.0 <= self.dropout < 1.0, "be in [0, 1)")
