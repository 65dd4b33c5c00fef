"""What training tells: one row per rollout, in a file, on a progress bar and to a tracker."""

import csv
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from lrpilot.agents.rollback import ROLLED_BACK_KEY
from lrpilot.agents.tracking import Tracker
from lrpilot.envs.lost_episodes import is_lost
from lrpilot.files import append, write_whole

FILE_NAME = "metrics.csv"
FIELDS = (
    "num_env_steps",
    "num_inner_steps",
    "num_episodes",
    "num_lost_episodes",
    "return_mean",
    "return_std",
    "diverged_share",
    "action_std",
    "policy_loss",
    "value_loss",
    "explained_variance",
    "approx_kl",
    "entropy_coefficient",
    "num_rolled_back",
    "seconds",
    "env_steps_per_second",
)
# names of Stable-Baselines3's, of which an algorithm has some
_TRAIN_KEYS = {
    "train/std": "action_std",
    "train/policy_gradient_loss": "policy_loss",
    "train/actor_loss": "policy_loss",
    "train/value_loss": "value_loss",
    "train/critic_loss": "value_loss",
    "train/explained_variance": "explained_variance",
    "train/approx_kl": "approx_kl",
    "train/ent_coef": "entropy_coefficient",
    # ours
    ROLLED_BACK_KEY: "num_rolled_back",
}


def read_rows(text: str) -> list[dict[str, str]]:
    """The rows of a metrics file's text."""
    return list(csv.DictReader(io.StringIO(text)))


def env_steps_reached(path: Path) -> int | None:
    """The env steps after the last row of a metrics file; None where nothing says."""
    try:
        rows = read_rows(path.read_text(encoding="utf-8"))
        return int(rows[-1]["num_env_steps"])
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return None


def _line(row: dict[str, Any]) -> str:
    line = io.StringIO()
    csv.DictWriter(line, FIELDS).writerow(row)
    return line.getvalue()


class RolloutRecorder(BaseCallback):
    """Writes a row per rollout: returns of the episodes that ended in it, losses, speed.

    What an algorithm does not have, or not yet, is left empty. Episodes that a worker has taken
    with it are counted, and are no part of any other figure. Where the file cannot be written, a
    warning says so, and it is written whole with the next row.

    Args:
        path: the CSV file.
        total_env_steps: budget, for the progress bar.
        tracker: also gets every row.
        earlier: `text()` of the run that is resumed.
        feature_range: of that run, too, or of the policy that the agent began with.
        show_progress: whether to draw the bar.
    """

    def __init__(
        self,
        path: Path,
        *,
        total_env_steps: int,
        tracker: Tracker,
        earlier: str = "",
        feature_range: list[list[float]] | None = None,
        show_progress: bool = True,
    ) -> None:
        super().__init__()
        self._path = path
        self._total = total_env_steps
        self._tracker = tracker
        self._show_progress = show_progress
        self.rows: list[dict[str, Any]] = list(read_rows(earlier))
        # earlier versions had fewer columns
        self._lines = [_line(dict(zip(FIELDS, FIELDS, strict=True))), *map(_line, self.rows)]
        self._is_whole = True
        self.feature_range = feature_range
        """The lowest and the highest value of every feature so far; None before any."""
        last = self.rows[-1] if self.rows else {}
        self.num_inner_steps = int(last.get("num_inner_steps", 0))
        self._earlier_seconds = float(last.get("seconds", 0.0))
        self._open: dict[str, Any] | None = None

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()
        self._first_env_steps = self.num_timesteps
        self._bar = tqdm(
            total=max(self._total, self.num_timesteps),
            initial=self.num_timesteps,
            unit=" env steps",
            disable=not self._show_progress,
            mininterval=0.5,
        )
        self._try_to(self.write)

    def text(self) -> str:
        """The header and all rows, as in the file."""
        return "".join(self._lines)

    def write(self) -> None:
        """Write the file anew, whole, whatever broke off while rows were added to it."""
        write_whole(self._path, self.text())

    def _on_rollout_start(self) -> None:
        self._write_open_row()
        self._episodes: list[tuple[float, float]] = []
        self._num_lost = 0

    def _on_step(self) -> bool:
        seen = self.locals["new_obs"]
        if self.feature_range is not None:
            seen = np.concatenate([seen, np.array(self.feature_range, seen.dtype)])
        self.feature_range = [seen.min(axis=0).tolist(), seen.max(axis=0).tolist()]
        for info in self.locals["infos"]:
            self._num_lost += is_lost(info)
            if "episode_return" in info:
                self.num_inner_steps += info["num_steps"]
                self._episodes.append((info["episode_return"], info["is_diverged"]))
        self._bar.update(min(self.training_env.num_envs, self._bar.total - self._bar.n))
        return True

    def _on_rollout_end(self) -> None:
        seconds = time.perf_counter() - self._start
        returns, diverged = np.array(self._episodes or [(np.nan, np.nan)], dtype=np.float64).T
        self._open = {
            "num_env_steps": self.num_timesteps,
            "num_inner_steps": self.num_inner_steps,
            "num_episodes": len(self._episodes),
            "num_lost_episodes": self._num_lost,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "diverged_share": float(diverged.mean()),
            "seconds": self._earlier_seconds + seconds,
            "env_steps_per_second": (self.num_timesteps - self._first_env_steps) / seconds,
        }
        self._bar.set_postfix_str(f"return {self._open['return_mean']:+.3f}")

    def _on_training_end(self) -> None:
        self._write_open_row()
        self._bar.close()

    def _write_open_row(self) -> None:
        """Write the row of the last rollout; its losses are known only after the update."""
        if self._open is None:
            return
        recorded = self.logger.name_to_value
        losses = {name: recorded[key] for key, name in _TRAIN_KEYS.items() if key in recorded}
        row = {**self._open, **losses}
        self._open = None
        self.rows.append(row)
        self._lines.append(_line(row))
        self._try_to(self._append if self._is_whole else self.write)
        self._tracker.log(row, step=row["num_env_steps"])

    def _append(self) -> None:
        append(self._path, self._lines[-1])

    def _try_to(self, write: Callable[[], None]) -> None:
        try:
            write()
            self._is_whole = True
        except OSError as error:
            self._is_whole = False
            warnings.warn(
                f"metrics cannot be written and training goes on without: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def total(self, name: str) -> int:
        """The sum of a count over all rows."""
        return sum(int(row.get(name) or 0) for row in self.rows)
