"""Reproduce a published experiment: `python scripts/reproduce.py experiment=iclr2023_nmf`.

Trains the agent, if the experiment has one and no policy is given, and compares as the YAML of
the experiment says. The output folder holds the agent's run folder, and tables, figures and runs.
`experiment=quick/...` is a small version that takes about two minutes.
"""

import inspect
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lrpilot import Policy
from lrpilot.evaluation.page import PAGE_FILE, write_page
from lrpilot.evaluation.runs.output import RUNS_FILE, Output
from lrpilot.evaluation.runs.provenance import provenance_line
from scripts.jobs import run_job, run_script
from scripts.resources import cluster_of
from scripts.tracking import tracked
from scripts.training import train_configured

UNREAD = ("rival",)


@hydra.main(version_base=None, config_path="../conf", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    """Reproduce, in a run folder of its own."""
    run_job(reproduce_tracked, cfg, unread=UNREAD)


def reproduce_tracked(cfg: DictConfig, out_dir: Path) -> None:
    """Reproduce, and give the tracker tables, figures and runs."""
    with tracked(cfg, out_dir, job_type="reproduce", group=out_dir.name):
        reproduce(cfg, out_dir)


def reproduce(cfg: DictConfig, out_dir: Path) -> None:
    """Train, then compare."""
    start = time.perf_counter()
    # reads the commit now, not after hours of training
    origin = provenance_line()
    compare = instantiate(cfg.compare, _convert_="all")
    path = cfg.policy
    takes_policy = "policy" in inspect.signature(compare).parameters
    if takes_policy != (path is not None or "agent" in cfg):
        need = "name the policy that is compared" if takes_policy else "be left out"
        raise ValueError(f"`policy` must {need} in this experiment, got {path}")
    if path is None and "agent" in cfg:
        path = out_dir / "agent"
        path.mkdir(exist_ok=True)
        summary = train_configured(cfg, path, group=out_dir.name)
        if summary["stopped_by"]:
            raise SystemExit(f"stopped by {summary['stopped_by']}; the agent's run is {path}")
    compare(
        **({} if path is None else {"policy": Policy.load(path)}),
        output=Output(
            out_dir,
            origin,
            progress=partial(tqdm, disable=not cfg.show_progress, leave=False),
            is_quick=cfg.is_quick,
            store=Path(cfg.store) if cfg.store else None,
            num_workers=cfg.num_workers,
            cluster=cluster_of(cfg),
        ),
    )
    if (out_dir / RUNS_FILE).exists():
        write_page(out_dir, out_dir / PAGE_FILE)
        print(out_dir / PAGE_FILE)
    print(f"{time.perf_counter() - start:.0f} seconds; tables, figures and runs in {out_dir}")


if __name__ == "__main__":
    run_script(main)
