"""Every configuration composes, and builds what it names."""

import copy
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import LRScheduler

# registers the resolvers of the configuration
import scripts.sweeps  # noqa: F401
from lrpilot import ActionSpec, ControlSettings, Policy
from lrpilot.agents.tracking import Tracker
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.task import Task
from scripts.studies import read_space

CONF = Path(__file__).resolve().parents[1] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (CONF / "task" / "optimizer").glob("*.yaml"))
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
QUICK = sorted(f"quick/{path.stem}" for path in (CONF / "experiment" / "quick").glob("*.yaml"))
SCRIPTS = ["train_agent", "tune_agent", "evaluate", "reproduce", "report", "stress_nmf"]
AGENTS = sorted(path.stem for path in (CONF / "agent").glob("*.yaml"))
BUDGETS = sorted(path.stem for path in (CONF / "budget").glob("*.yaml"))
LAUNCHERS = sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml"))
LOGGERS = sorted(path.stem for path in (CONF / "logger").glob("*.yaml"))


@functools.cache
def composed_once(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(name, list(overrides))


def composed(name: str, *overrides: str) -> Any:
    return copy.deepcopy(composed_once(name, *overrides))


def built(node: Any) -> Any:
    return instantiate(node, _convert_="all")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_agent", "evaluate"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_resolves(name: str, task: str) -> None:
    cfg = composed(name, f"task={task}")
    del cfg.output_root
    OmegaConf.resolve(cfg)
    assert cfg.task.name == task


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in TASKS if name != "own"])
def test_every_task_instantiates(task: str) -> None:
    assert isinstance(built(composed("train_agent", f"task={task}").task), Task)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_drives_a_run(optimizer: str) -> None:
    cfg = composed("train_agent", "task=quadratic", f"task/optimizer={optimizer}")
    run = built(cfg.task).start(0)
    run.step()
    assert run.num_steps == 1


def test_environment_instantiates() -> None:
    cfg = composed("train_agent", "task=quadratic", "env.runner=looped")
    env = built(cfg.env)(built(cfg.task), 2)
    assert isinstance(env.envs[0], LRControlEnv)
    assert env.reset().shape == (2, 12)


def test_an_action_has_the_same_defaults_in_code_configuration_and_shipped_policies() -> None:
    configured = built(composed("train_agent").env.action)
    shipped = [Policy.load(name).action for name in ("cifar", "small_networks")]
    assert [configured, *shipped] == [ActionSpec()] * 3


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_has_a_space_of_its_own_settings(agent: str) -> None:
    cfg = composed("tune_agent", f"agent={agent}")
    assert "agent.algorithm.learning_rate" in read_space(cfg)


def test_agent_instantiates() -> None:
    cfg = composed("train_agent", "task=quadratic", "env.runner=looped")
    task = built(cfg.task)
    env = built(cfg.env)(task, cfg.agent.num_envs)
    model = built(cfg.agent.algorithm)(env=env, device="cpu")
    assert model.gamma == 1.0


def test_a_rollout_is_whole_episodes() -> None:
    cfg = composed("train_agent")
    assert cfg.agent.algorithm.n_steps % (ControlSettings().num_decisions - 1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_instantiates(scheduler: str) -> None:
    cfg = composed("evaluate", f"scheduler=[{scheduler}]")
    run = built(composed("evaluate", "task=quadratic").task).start(0)
    make = built(cfg.scheduler[scheduler])
    assert isinstance(make(run.optimizer, total_steps=10), LRScheduler)


def test_evaluation_compares_every_scheduler_by_default() -> None:
    assert sorted(composed("evaluate").scheduler) == SCHEDULERS


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS + QUICK)
def test_every_experiment_says_what_to_compare(name: str) -> None:
    assert callable(built(composed("reproduce", f"experiment={name}").compare))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", EXPERIMENTS + QUICK)
def test_every_script_composes_every_experiment(script: str, name: str) -> None:
    cfg = composed(script, f"experiment={name}")
    assert cfg.task == composed("reproduce", f"experiment={name}").task


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_command_line_wins_over_an_experiment(script: str) -> None:
    cfg = composed(
        script, "experiment=iclr2023_nmf", "agent.total_steps=10", "task.smallest_rank=3"
    )
    assert (cfg.agent.total_steps, cfg.task.smallest_rank, cfg.task.noise) == (10, 3, "gaussian")


def test_every_experiment_has_a_quick_version() -> None:
    assert [f"quick/{name}" for name in EXPERIMENTS] == QUICK


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_version_of_an_experiment_says_so_and_is_smaller(name: str) -> None:
    whole, quick = (
        OmegaConf.to_container(composed("reproduce", f"experiment={kind}{name}"), resolve=True)
        for kind in ("", "quick/")
    )
    assert isinstance(whole, dict)
    assert isinstance(quick, dict)
    assert (whole["is_quick"], quick["is_quick"]) == (False, True)
    assert whole["compare"] != quick["compare"]
    assert list(whole["compare"]) == list(quick["compare"])
    assert quick["task"]["total_steps"] <= whole["task"]["total_steps"]


@pytest.mark.slow
def test_rollouts_of_experiments_are_whole_episodes() -> None:
    found = [composed("reproduce", f"experiment={name}") for name in EXPERIMENTS + QUICK]
    with_agents = [cfg for cfg in found if "agent" in cfg]
    assert len(with_agents) >= 2
    for agent in (cfg.agent for cfg in with_agents):
        n_steps = agent.algorithm.n_steps
        assert n_steps % (ControlSettings().num_decisions - 1) == 0
        assert n_steps * agent.num_envs % agent.algorithm.batch_size == 0


def test_rivals_and_schedulers_are_chosen_from_their_groups() -> None:
    cfg = composed("evaluate", "rival=[line_search,schedule_free]", "scheduler=[]")
    assert list(cfg.rival) == ["line_search", "schedule_free"]
    assert list(cfg.scheduler) == []


def test_metrics_go_to_the_run_folder_alone_by_default() -> None:
    assert composed("train_agent").logger == composed("train_agent", "logger=csv").logger


@pytest.mark.parametrize("logger", LOGGERS)
def test_every_logger_instantiates(
    logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = built(composed("train_agent", f"logger={logger}").logger)(tmp_path, {})
    assert isinstance(tracker, Tracker)
    tracker.close()


# each has the name of the plugin's own, which it replaces
@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher/:UserWarning")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_instantiates(launcher: str) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        chosen = [f"hydra/launcher={launcher}", "gpus_per_job=0", "hydra.sweep.dir=sweep"]
        cfg = compose("train_agent", chosen, return_hydra_config=True)
        cfg.hydra.job.name = "train_agent"
        assert isinstance(instantiate(cfg.hydra.launcher), Launcher)


@pytest.mark.parametrize("key", ["sed", "task.base_lrr", "env.num_decision", "agent.totalsteps"])
def test_mistyped_key_is_an_error(key: str) -> None:
    with pytest.raises(ConfigCompositionException, match=key.split(".")[-1]):
        composed("train_agent", f"{key}=1")


def test_task_without_a_budget_of_its_own_gets_the_default_one() -> None:
    assert composed("train_agent", "task=quadratic").agent.total_steps == 20000


def test_small_networks_is_trained_as_the_policy_that_ships_was() -> None:
    agent = composed("train_agent", "task=small_networks").agent
    card = Policy.load("small_networks").card["agent"]
    for name in ("num_envs", "total_steps"):
        assert agent[name] == card[name]
    assert agent.algorithm.batch_size == card["algorithm"]["batch_size"]


def test_command_line_overrides_the_budget_of_a_task() -> None:
    agent = composed("train_agent", "task=small_networks", "agent.total_steps=7").agent
    assert (agent.total_steps, agent.num_envs) == (7, 512)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_belongs_to_a_task(budget: str) -> None:
    assert budget in TASKS


def defaults_of(target: str) -> dict[str, Any]:
    """What a class or function of ours takes where nothing is given."""
    made = ControlSettings if target == "lrpilot.envs.make_vec_env" else get_object(target)
    taken = inspect.signature(made).parameters.values()
    return {p.name: p.default for p in taken if p.default is not p.empty}


def repeated(node: Any) -> Iterator[str]:
    """The keys, below a `_target_` of ours, whose values are the defaults in the code.

    Scripts read a task's name.
    """
    if isinstance(node, dict):
        target = str(node.get("_target_"))
        defaults = defaults_of(target) if target.startswith("lrpilot.") else {}
        for key, value in node.items():
            given = tuple(value) if isinstance(value, list) else value
            if key != "name" and key in defaults and given == defaults[key]:
                yield f"{target}: {key}"
            yield from repeated(value)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_default_stands_in_the_code_or_in_the_configuration(path: Path) -> None:
    assert list(repeated(OmegaConf.to_container(OmegaConf.load(path)))) == []
