import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
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
    Policy,
)
from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.policy_file import PolicyFileError
from tests.lrpilot.policy.test_policy import (
    actions,
    edited,
    random_policy,
    read_file,
    recurrent_lstm,
    recurrent_policy,
    sequence,
    write_file,
)

# ---- files that are no policy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no policy at .*absent"):
        Policy.load(tmp_path / "absent")


def test_a_folder_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no policy at .*{FILE_NAME}"):
        Policy.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"learning rate: 0.1\n", b"\x00" * 64, b"{}" * 100, bytes(range(256))]
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(PolicyFileError, match=r"p is not a safetensors file, or is truncated"):
        Policy.load(tmp_path / "p")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_safetensors_file_of_something_else_is_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    safetensors.torch.save_file({"w": torch.ones(4).to(dtype)}, tmp_path / "p")
    with pytest.raises(PolicyFileError, match="is a safetensors file, but not an lrpilot policy"):
        Policy.load(tmp_path / "p")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_the_bomb_of_these_tests_goes_off_when_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("format_name", ["pickle", "torch"])
def test_no_code_of_a_pickle_is_run(tmp_path: Path, format_name: str) -> None:
    bomb = Bomb(tmp_path / "marker")
    if format_name == "pickle":
        (tmp_path / "p").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, tmp_path / "p")
    with pytest.raises(PolicyFileError, match="not a safetensors file"):
        Policy.load(tmp_path / "p")
    assert not (tmp_path / "marker").exists()


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    content = random_policy().save(tmp_path / "p").read_bytes()
    for size in [*range(0, len(content), 97), len(content) - 1]:
        (tmp_path / "p").write_bytes(content[:size])
        with pytest.raises(PolicyFileError, match="truncated"):
            Policy.load(tmp_path / "p")


def test_a_newer_format_names_the_upgrade(tmp_path: Path) -> None:
    path = edited(tmp_path / "p", format_version=FORMAT_VERSION + 1)
    with pytest.raises(PolicyFileError, match=rf"format {FORMAT_VERSION + 1}.*upgrade lrpilot"):
        Policy.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"policy"', "{}", '{"format_version": 1e999}', "[" * 100_000],
    ids=lambda text: text[:12],
)
def test_a_broken_header_is_refused(tmp_path: Path, text: str) -> None:
    _, tensors = read_file(random_policy().save(tmp_path / "p"))
    (tmp_path / "p").write_bytes(safetensors_bytes(tensors, {"lrpilot": text}))
    with pytest.raises(PolicyFileError, match="is not a valid lrpilot policy"):
        Policy.load(tmp_path / "p")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": None},
        {"format_version": "new"},
        {"architecture": None},
        {"architecture": {"kind": "gru", "activation": "tanh", "output": "clip"}},
        {"architecture": {"kind": "mlp", "activation": "tanh", "output": "relu"}},
        {"observation": {"groups": ["luck"]}},
        {"observation": {"groups": [["loss"]]}},
        {"observation": {"groups": "loss"}},
        {"observation": {"taste": 1}},
        {"observation": []},
        {"action": {"kind": "raw"}},
        {"action": {"max_factor": "large"}},
        {"clock": {"horizon_range": [5]}},
        {"clock": {"horizon_range": 5}},
        {"clock": {"num_decisions": 0}},
        {"format_version": True},
        {"format_version": 1.9},
        {"format_version": 0},
        {"card": []},
        {"card": None},
        {"card": "trained at night"},
        *(
            {section: {name: value}}
            for section, name in (
                ("clock", "num_decisions"),
                ("clock", "fixed_interval"),
                ("observation", "num_entries"),
            )
            for value in (math.nan, math.inf, 1.5, 2.0, True, -1, 10**400, "2")
        ),
        *(
            {"clock": {"horizon_range": [1, value]}}
            for value in (math.nan, math.inf, 1.5, True, 10**400, "2")
        ),
        {"action": {"min_factor": 5e-324, "start_factor": 1.0}},
        {"action": {"max_factor": 1e308}},
        {"action": {"max_factor": math.inf}},
        {"action": {"max_factor": math.nan}},
        {"action": {"max_factor": True, "start_factor": 0.5}},
        {"action": {"max_factor": "100"}},
        {"action": {"max_log_change": True}},
        {"action": {"max_log_change": None}},
        {"action": {"start_factor": math.nan}},
    ],
    ids=str,
)
def test_a_header_of_wrong_values_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = edited(tmp_path / "p", **changes)
    with pytest.raises(PolicyFileError, match=str(path)):
        Policy.load(path)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    key=st.sampled_from(
        ["format_version", "architecture", "observation", "action", "clock", "card"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kind", "activation", "output", "groups", "horizon_range", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=6,
    ),
)
def test_any_value_in_the_header_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    path = edited(tmp_path_factory.getbasetemp() / "edited", **{key: value})
    try:
        loaded = Policy.load(path)
    except PolicyFileError:
        return
    assert isinstance(loaded, Policy)


@pytest.mark.parametrize("output", ["clip", "tanh"])
@pytest.mark.parametrize("large", [1e37, 3e38])
def test_weights_whose_sums_could_overflow_are_refused(
    tmp_path: Path, large: float, output: str
) -> None:
    path = random_policy(output=output).save(tmp_path / "p")
    header, tensors = read_file(path)
    for name, sign in (("layers.1.weight", 1.0), ("layers.2.weight", -1.0)):
        tensors[name][:] = sign * large
    write_file(path, header, tensors)
    with pytest.raises(PolicyFileError, match="must not overflow, got sums of up to"):
        Policy.load(path)


def test_an_lstm_whose_sums_could_overflow_is_refused() -> None:
    weight, bias = recurrent_lstm()
    with pytest.raises(ValueError, match="`lstm` must not overflow, got sums of up to"):
        recurrent_policy(lstm=(np.full_like(weight, 1e37), bias))


@pytest.mark.parametrize("output", ["clip", "tanh"])
@pytest.mark.parametrize("make", [random_policy, recurrent_policy])
def test_an_action_is_a_number_however_large_the_weights_are(
    make: Callable[..., Policy], output: str
) -> None:
    def enlarged(layer: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Any:
        return np.sign(layer[0]) * np.float32(1e36), layer[1]

    policy = make(output=output)
    policy = replace(
        policy,
        layers=[enlarged(layer) for layer in policy.layers],
        lstm=enlarged(policy.lstm) if policy.lstm else None,
    )
    assert all(-1.0 <= action <= 1.0 for action in sequence(policy))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_file_of_another_precision_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = random_policy().save(tmp_path / "p")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors["layers.0.weight"] = tensors["layers.0.weight"].to(dtype)
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(PolicyFileError, match=r"must hold float32 arrays alone, got 'layers\.0"):
        Policy.load(path)


@pytest.mark.parametrize(
    ("section", "name"),
    [("action", "anchor"), ("clock", "fixed_interval"), ("observation", "num_entries")],
)
def test_a_file_that_leaves_a_value_to_the_defaults_is_refused(
    tmp_path: Path, section: str, name: str
) -> None:
    header, tensors = read_file(random_policy().save(tmp_path / "p"))
    del header[section][name]
    with pytest.raises(PolicyFileError, match=f"is not a valid lrpilot policy: it lacks '{name}'"):
        Policy.load(write_file(tmp_path / "p", header, tensors))


def test_a_policy_trained_for_another_observation_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path / "p", observation=ObservationSpec(("loss",)).to_dict())
    with pytest.raises(PolicyFileError, match="must take the 5 features of the observation"):
        Policy.load(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_file_whose_weights_are_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    path = random_policy().save(tmp_path / "p")
    header, tensors = read_file(path)
    tensors["layers.1.weight"][0, 0] = bad
    write_file(path, header, tensors)
    with pytest.raises(PolicyFileError, match="must be finite"):
        Policy.load(path)


def test_a_file_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    path = random_policy().save(tmp_path / "p")
    header, tensors = read_file(path)
    del tensors["layers.1.weight"], tensors["layers.1.bias"]
    write_file(path, header, tensors)
    with pytest.raises(PolicyFileError, match=r"layers\.1"):
        Policy.load(path)


def test_a_policy_with_another_specification_keeps_its_weights() -> None:
    policy = random_policy()
    changed = replace(policy, action=ActionSpec(start_factor=0.1))
    assert actions(changed) == actions(policy)
