import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from lrpilot.policy.action import ActionSpec
from lrpilot.policy.actor import (
    FILE_NAME,
    FORMAT_VERSION,
    SHIPPED,
    Policy,
)
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.policy_file import PolicyFileError, content_digest

SIZES = (12, 16, 16, 1)


def random_policy(
    seed: int = 0, *, sizes: tuple[int, ...] = SIZES, scale: float = 1.0, **arguments: Any
) -> Policy:
    rng = np.random.default_rng(seed)
    layers = [
        (
            rng.normal(0.0, scale / np.sqrt(m), (m, n)).astype(np.float32),
            rng.normal(0.0, 0.1, n).astype(np.float32),
        )
        for m, n in pairwise(sizes)
    ]
    return Policy(
        **{
            "layers": layers,
            "observation": ObservationSpec(),
            "action": ActionSpec(),
            "clock": ClockSpec(),
            **arguments,
        }
    )


def observations(num: int = 200, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-5, 5, (num, 12)).astype(np.float32)


def actions(policy: Policy) -> list[float]:
    return [policy.act(observation) for observation in observations()]


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["lrpilot"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_file(path: Path, header: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Path:
    """A file whose digest is right, whatever its content."""
    header.pop("sha256", None)
    sealed = {**header, "sha256": content_digest(header, tensors)}
    path.write_bytes(safetensors_bytes(tensors, {"lrpilot": json.dumps(sealed)}))
    return path


def edited(path: Path, **header_changes: Any) -> Path:
    """The saved policy with another header."""
    header, tensors = read_file(random_policy().save(path))
    for name, value in header_changes.items():
        is_part = isinstance(value, dict) and isinstance(header[name], dict)
        header[name] = {**header[name], **value} if is_part else value
    return write_file(path, header, tensors)


# ---- acting


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.01, 10),
    output=st.sampled_from(["clip", "tanh"]),
)
def test_actions_lie_between_minus_one_and_one(seed: int, scale: float, output: str) -> None:
    policy = random_policy(seed, scale=scale, output=output)
    assert all(-1.0 <= action <= 1.0 for action in actions(policy))


@pytest.mark.parametrize("output", ["clip", "tanh"])
@pytest.mark.parametrize("sizes", [(12, 1), (12, 8, 1), SIZES])
def test_actions_equal_the_torch_network_of_the_same_weights(
    sizes: tuple[int, ...], output: str
) -> None:
    policy = random_policy(sizes=sizes, output=output)
    modules: list[torch.nn.Module] = []
    for weight, bias in policy.layers:
        linear = torch.nn.Linear(*weight.shape)
        linear.load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
        modules += [linear, torch.nn.Tanh()]
    network = torch.nn.Sequential(*modules[:-1])
    with torch.no_grad():
        values = network(torch.tensor(observations()))[:, 0]
    expected = values.tanh() if output == "tanh" else values.clamp(-1, 1)
    np.testing.assert_allclose(actions(policy), expected.numpy(), rtol=0, atol=1e-6)


def test_an_action_is_a_python_float() -> None:
    assert type(random_policy().act(observations()[0])) is float
    assert type(random_policy(output="tanh").act(observations()[0])) is float


def test_acting_leaves_the_observation_as_it_was() -> None:
    observation = observations()[0]
    before = observation.copy()
    random_policy().act(observation)
    assert np.array_equal(observation, before)


# ---- memory


def recurrent_policy(seed: int = 0, *, units: int = 8, **arguments: Any) -> Policy:
    rng = np.random.default_rng(seed + 100)
    shapes = (12 + units, 4 * units), (4 * units,)
    weight, bias = (rng.normal(0.0, 0.5, shape).astype(np.float32) for shape in shapes)
    layers = random_policy(seed, sizes=(12, units, 4, 1)).layers[1:]
    return random_policy(**{"layers": layers, "lstm": (weight, bias), **arguments})


def recurrent_lstm() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    lstm = recurrent_policy().lstm
    assert lstm is not None
    return lstm


def sequence(policy: Policy) -> list[float]:
    memory = policy.initial_memory()
    return [policy.act(observation, memory) for observation in observations(20)]


@pytest.mark.parametrize("output", ["clip", "tanh"])
def test_actions_of_a_recurrent_policy_depend_on_earlier_observations(output: str) -> None:
    policy = recurrent_policy(output=output)
    fresh = [policy.act(seen, policy.initial_memory()) for seen in observations(20)]
    assert sequence(policy)[0] == fresh[0]
    assert not set(sequence(policy)[1:]) & set(fresh[1:])


def test_a_recurrent_policy_repeats_itself_from_its_initial_memory() -> None:
    policy = recurrent_policy()
    assert sequence(policy) == sequence(policy)


@pytest.mark.parametrize("policy", [random_policy(), recurrent_policy()], ids=["mlp", "lstm"])
def test_a_batch_of_runs_acts_as_each_run_alone(policy: Policy) -> None:
    seen = np.stack([observations(20, seed=seed) for seed in range(5)], axis=1)
    together = policy.initial_memory(5)
    batched = [policy.act_batch(rows, together) for rows in seen]
    for run in range(5):
        memory = policy.initial_memory()
        alone = [policy.act(rows[run], memory) for rows in seen]
        np.testing.assert_allclose(np.array(batched)[:, run], alone, rtol=0, atol=1e-6)


def test_a_policy_without_memory_ignores_one() -> None:
    policy = random_policy()
    assert policy.initial_memory().shape == (2, 0)
    assert sequence(policy) == actions(policy)[:20]


def test_a_recurrent_policy_without_its_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`memory` is required .* see `initial_memory\(\)`"):
        recurrent_policy().act(observations()[0])


@pytest.mark.parametrize(
    "shapes", [((20, 32), (16,)), ((19, 32), (32,)), ((12, 0), (0,)), ((20, 30), (30,))]
)
def test_an_lstm_that_does_not_fit_is_refused(shapes: Any) -> None:
    with pytest.raises(ValueError, match=r"`lstm` must have shapes \(12 \+ n, 4 n\) and \(4 n,\)"):
        recurrent_policy(lstm=tuple(np.zeros(shape, np.float32) for shape in shapes))


def test_an_lstm_that_is_not_finite_is_refused() -> None:
    weight, bias = recurrent_lstm()
    with pytest.raises(ValueError, match="`lstm` must be finite, got NaN or infinity"):
        recurrent_policy(lstm=(weight, np.full_like(bias, np.nan)))


def test_layers_must_take_the_units_of_the_lstm() -> None:
    with pytest.raises(ValueError, match="layer 0 of the policy must take the 8 units of the LSTM"):
        recurrent_policy(layers=random_policy().layers)


def test_a_saved_recurrent_policy_acts_identically_and_keeps_its_fingerprint(
    tmp_path: Path,
) -> None:
    policy = recurrent_policy()
    loaded = Policy.load(policy.save(tmp_path / "p"))
    assert read_file(tmp_path / "p")[0]["architecture"]["kind"] == "lstm"
    assert sequence(loaded) == sequence(policy)
    assert loaded.fingerprint == policy.fingerprint


def test_the_fingerprint_follows_the_lstm() -> None:
    policy = recurrent_policy()
    weight, bias = recurrent_lstm()
    assert replace(policy, lstm=(weight, bias + 1)).fingerprint != policy.fingerprint


@pytest.mark.parametrize("lost", ["lstm.weight", "lstm.bias", "layers.1.bias"])
def test_a_recurrent_file_that_lacks_an_array_is_refused(tmp_path: Path, lost: str) -> None:
    path = recurrent_policy().save(tmp_path / "p")
    header, tensors = read_file(path)
    del tensors[lost]
    write_file(path, header, tensors)
    with pytest.raises(PolicyFileError, match="is not a valid lrpilot policy"):
        Policy.load(path)


# ---- what is refused


def layer(inputs: int, outputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.zeros((inputs, outputs), np.float32), np.zeros(outputs, np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_weights_that_are_not_finite_are_refused(bad: float, part: int) -> None:
    layers = [layer(12, 4), layer(4, 1)]
    layers[1][part].flat[0] = bad
    with pytest.raises(ValueError, match="layer 1 of the policy must be finite, got NaN or inf"):
        random_policy(layers=layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "`layers` must hold at least one layer, got none"),
        ([layer(11, 1)], "layer 0 of the policy must take the 12 features of the observation"),
        ([layer(12, 4), layer(5, 1)], "layer 1 of the policy must take the 4 outputs of the layer"),
        ([layer(12, 2)], "`layers` must end in one action, got 2"),
        ([(np.zeros((12, 1)), np.zeros(2))], "layer 0 of the policy must take"),
        ([(np.zeros(12), np.zeros(()))], "layer 0 of the policy must take"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_policy(layers=layers)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`output` must be one of .* got 'relu'"):
        random_policy(output="relu")


# ---- the fingerprint


def test_equal_policies_have_equal_fingerprints() -> None:
    assert random_policy(3).fingerprint == random_policy(3).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        random_policy(1),
        random_policy(output="tanh"),
        random_policy(action=ActionSpec(max_log_change=0.5)),
        random_policy(clock=ClockSpec(num_decisions=31)),
        random_policy(observation=ObservationSpec(num_entries=99)),
    ],
    ids=["weights", "output", "action", "clock", "observation"],
)
def test_the_fingerprint_follows_all_that_decides_the_learning_rate(other: Policy) -> None:
    assert other.fingerprint != random_policy().fingerprint


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("small_networks", "e6893bf719ae7ee4cf33175cdd88bbe145294f367278266220d49fc34ae63a6c"),
        ("cifar", "dc755f47709a46c139ba98379583b3df83c5b242e5612103265f078d1790c786"),
        ("small_trainings", "1253ad970b4fff7d955f377ffc2277c0b60c9e5ee06b53c654c25c71febe1812"),
    ],
)
def test_the_fingerprint_of_a_published_file_never_changes(name: str, published: str) -> None:
    assert Policy.load(SHIPPED / f"{name}.safetensors").fingerprint == published


def test_the_fingerprint_ignores_the_card() -> None:
    assert random_policy(card={"task": "nmf"}).fingerprint == random_policy().fingerprint


# ---- the file


@pytest.mark.parametrize("output", ["clip", "tanh"])
def test_a_saved_policy_acts_identically(tmp_path: Path, output: str) -> None:
    policy = random_policy(output=output)
    assert actions(Policy.load(policy.save(tmp_path / "p"))) == actions(policy)


def test_a_saved_policy_of_transposed_weights_acts_identically(tmp_path: Path) -> None:
    # a torch linear layer keeps its weight transposed, so this is what an export hands over
    layers = [(np.asfortranarray(w), b) for w, b in random_policy(sizes=(12, 64, 64, 1)).layers]
    policy = random_policy(layers=layers)
    assert actions(Policy.load(policy.save(tmp_path / "p"))) == actions(policy)


def test_a_saved_policy_of_double_precision_acts_identically(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    policy = random_policy(layers=[(rng.normal(size=(12, 1)), rng.normal(size=1))])
    assert actions(Policy.load(policy.save(tmp_path / "p"))) == actions(policy)


def test_a_saved_policy_of_double_precision_keeps_its_fingerprint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    policy = random_policy(layers=[(rng.normal(size=(12, 1)), rng.normal(size=1))])
    assert Policy.load(policy.save(tmp_path / "p")).fingerprint == policy.fingerprint


def test_a_saved_policy_keeps_its_fingerprint(tmp_path: Path) -> None:
    policy = random_policy()
    assert Policy.load(policy.save(tmp_path / "p")).fingerprint == policy.fingerprint


def test_a_saved_policy_keeps_its_specifications_and_card(tmp_path: Path) -> None:
    policy = random_policy(
        sizes=(6, 1),
        observation=ObservationSpec(("loss", "progress"), num_entries=5),
        action=ActionSpec("residual", "cosine", 0.3, 0.01, 10.0, 0.5),
        clock=ClockSpec(12, (50, 5000)),
        output="tanh",
        card={"task": "nmf", "seeds": [1, 2], "budget": {"steps": 4.5}},
    )
    loaded = Policy.load(policy.save(tmp_path / "p"))
    for name in ("observation", "action", "clock", "output", "card"):
        assert getattr(loaded, name) == getattr(policy, name)


SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_a_shipped_policy_is_of_a_format_with_a_digest_and_names_no_path(name: str) -> None:
    header, _ = read_file(SHIPPED / f"{name}.safetensors")
    assert header["format_version"] in (FORMAT_VERSION - 1, FORMAT_VERSION)
    assert not any(sign in json.dumps(header["card"]) for sign in ('"/', "~", "\\"))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_saving_a_shipped_policy_gives_its_file_again(tmp_path: Path, name: str) -> None:
    saved = Policy.load(name).save(tmp_path / "p")
    assert saved.read_bytes() == (SHIPPED / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_policy_that_ships_loads_by_its_name_and_has_a_card(path: Path) -> None:
    policy = Policy.load(path.stem)
    assert policy.fingerprint == Policy.load(path).fingerprint
    assert policy.card["num_env_steps"] > 0
    assert policy.card["task"]["name"] == path.stem


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_name_of_a_shipped_policy_means_it_whatever_is_called_so_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Policy.load("cifar").fingerprint
    if kind == "folder":
        Path("cifar").mkdir()
        random_policy().save(Path("cifar") / FILE_NAME)
    else:
        random_policy().save("cifar")
    assert Policy.load("cifar").fingerprint == shipped
    for path in ("./cifar", Path("cifar"), tmp_path / "cifar"):
        assert Policy.load(path).fingerprint == random_policy().fingerprint


@pytest.mark.parametrize("name", ["Cifar", "cifar.safetensors", "", Path("cifar")])
def test_a_name_that_does_not_ship_lists_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = r"shipped are \['cifar', 'small_networks', 'small_trainings'\]"
    with pytest.raises(FileNotFoundError, match=shipped):
        Policy.load(name)


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    random_policy().save(tmp_path / "p")
    assert Policy.load("~/p").fingerprint == random_policy().fingerprint


def test_a_run_folder_loads_its_policy(tmp_path: Path) -> None:
    policy = random_policy()
    policy.save(tmp_path / FILE_NAME)
    assert Policy.load(tmp_path).fingerprint == policy.fingerprint


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    random_policy().save(str(tmp_path / "p"))
    assert Policy.load(str(tmp_path / "p")).fingerprint == random_policy().fingerprint


def test_saving_leaves_only_the_policy_in_the_folder(tmp_path: Path) -> None:
    random_policy().save(tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]


def test_saving_replaces_an_older_policy(tmp_path: Path) -> None:
    random_policy(0).save(tmp_path / "p")
    random_policy(1).save(tmp_path / "p")
    assert Policy.load(tmp_path / "p").fingerprint == random_policy(1).fingerprint


def test_a_card_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = random_policy(0).save(tmp_path / "p")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        random_policy(1, card={"task": object()}).save(path)
    assert path.read_bytes() == before
