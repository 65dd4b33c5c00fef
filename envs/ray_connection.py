"""The connection to Ray, on this machine or to a cluster."""

import logging
from typing import Any


def connect(address: str, *, num_cpus: int) -> tuple[Any, bool]:
    """Ray, and whether it was started or joined here: whoever did so ends it by `shutdown()`.

    Where this process is connected already, that connection is used, whatever the address.

    Args:
        address: "local" starts Ray on this machine; "auto" is the cluster that it belongs to; else
            a cluster's address.
        num_cpus: of Ray on this machine.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if there is no cluster at the address.
    """
    ray: Any
    try:
        import ray
    except ImportError as error:
        raise ImportError("workers of Ray need it: pip install lrpilot[sweep]") from error
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # without the niceness of 15 that Ray gives to workers, and with which they starve on a
        # machine that has other work
        system = {"worker_niceness": 0}
        ray.init(
            "local", num_cpus=num_cpus, include_dashboard=False, _system_config=system, **quiet
        )
        return ray, True
    try:
        ray.init(address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"`ray_address` must be local, or that of a running cluster of Ray, got {address!r}: "
            f"{error}"
        ) from error
    return ray, True
