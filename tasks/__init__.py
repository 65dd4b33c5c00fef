"""Inner training problems: a `Task` describes one, a `Run` is one training in progress."""

from lrpilot.tasks.networks.from_model import from_model

__all__ = ["from_model"]
