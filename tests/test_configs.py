"""Every configuration composes, and builds what it names."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import LRScheduler

from lrpilot import ActionSpec, Policy
from lrpilot.agents.tracking import Tracker
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.task import Task

CONF = Path(__file__).resolve().parents[1] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (CONF / "task" / "optimizer").glob("*.yaml"))
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
BUDGETS = sorted(path.stem for path in (CONF / "budget").glob("*.yaml"))
LOGGERS = sorted(path.stem for path in (CONF / "logger").glob("*.yaml"))


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(name, list(overrides))


@pytest.mark.parametrize("name", ["train_agent", "evaluate"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_resolves(name, task):
    cfg = composed(name, f"task={task}")
    del cfg.output_root
    assert OmegaConf.to_container(cfg, resolve=True)["task"]["name"] == task


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in TASKS if name != "own"])
def test_every_task_instantiates(task):
    built = instantiate(composed("train_agent", f"task={task}").task, _convert_="all")
    assert isinstance(built, Task)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_drives_a_run(optimizer):
    cfg = composed("train_agent", "task=quadratic", f"task/optimizer={optimizer}")
    run = instantiate(cfg.task, _convert_="all").start(0)
    run.step()
    assert run.num_steps == 1


def test_environment_instantiates():
    cfg = composed("train_agent", "task=quadratic", "env.runner=looped")
    env = instantiate(cfg.env, _convert_="all")(instantiate(cfg.task, _convert_="all"), 2)
    assert isinstance(env.envs[0], LRControlEnv)
    assert env.reset().shape == (2, 12)


def test_the_defaults_of_an_action_are_those_of_the_configuration_and_of_the_shipped_policies():
    configured = instantiate(composed("train_agent").env.action, _convert_="all")
    shipped = [Policy.load(name).action for name in ("cifar", "small_networks")]
    assert [configured, *shipped] == [ActionSpec()] * 3


def test_agent_instantiates():
    cfg = composed("train_agent", "task=quadratic", "env.runner=looped")
    task = instantiate(cfg.task, _convert_="all")
    env = instantiate(cfg.env, _convert_="all")(task, cfg.agent.num_envs)
    model = instantiate(cfg.agent.algorithm, _convert_="all")(env=env, device="cpu")
    assert model.gamma == 1.0


def test_a_rollout_is_whole_episodes():
    cfg = composed("train_agent")
    assert cfg.agent.algorithm.n_steps % (cfg.env.num_decisions - 1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_instantiates(scheduler):
    cfg = composed("evaluate", f"scheduler=[{scheduler}]")
    run = instantiate(composed("evaluate", "task=quadratic").task, _convert_="all").start(0)
    make = instantiate(cfg.scheduler[scheduler], _convert_="all")
    assert isinstance(make(run.optimizer, total_steps=10), LRScheduler)


def test_evaluation_compares_every_scheduler_by_default():
    assert sorted(composed("evaluate").scheduler) == SCHEDULERS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_to_compare(experiment):
    cfg = composed("reproduce", f"experiment={experiment}")
    assert cfg.experiment.name == experiment
    assert callable(instantiate(cfg.experiment.compare, _convert_="all"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_quick_version_of_an_experiment_changes_what_it_names(experiment):
    cfg = composed("reproduce", f"experiment={experiment}").experiment
    assert cfg.quick
    for key, value in cfg.quick.items():
        found = OmegaConf.select(cfg, key, throw_on_missing=True)
        assert found is not None, key
        assert found != value, key


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("iclr")])
def test_rollouts_of_an_experiment_are_whole_episodes(experiment):
    cfg = composed("reproduce", f"experiment={experiment}").experiment
    assert cfg.agent.algorithm.n_steps % (cfg.env.num_decisions - 1) == 0
    assert cfg.agent.algorithm.n_steps * cfg.agent.num_envs % cfg.agent.algorithm.batch_size == 0


@pytest.mark.parametrize("logger", LOGGERS)
def test_every_logger_instantiates(logger, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = instantiate(composed("train_agent", f"logger={logger}").logger)(tmp_path, {})
    assert isinstance(tracker, Tracker)
    tracker.close()


@pytest.mark.parametrize("key", ["sed", "task.base_lrr", "env.num_decision", "agent.totalsteps"])
def test_mistyped_key_is_an_error(key):
    with pytest.raises(ConfigCompositionException, match=key.split(".")[-1]):
        composed("train_agent", f"{key}=1")


def test_task_without_a_budget_of_its_own_gets_the_default_one():
    assert composed("train_agent", "task=quadratic").agent.total_steps == 20000


def test_small_networks_is_trained_as_the_policy_that_ships_was():
    agent = composed("train_agent", "task=small_networks").agent
    card = Policy.load("small_networks").card["agent"]
    for name in ("num_envs", "total_steps"):
        assert agent[name] == card[name]
    assert agent.algorithm.batch_size == card["algorithm"]["batch_size"]


def test_command_line_overrides_the_budget_of_a_task():
    agent = composed("train_agent", "task=small_networks", "agent.total_steps=7").agent
    assert (agent.total_steps, agent.num_envs) == (7, 512)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_belongs_to_a_task(budget):
    assert budget in TASKS
