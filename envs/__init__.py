"""Gymnasium environments that wrap inner training runs."""

import gymnasium

from envs.lr_control import LRControlEnv

__all__ = ["LRControlEnv"]

if "lrpilot/LRControl-v0" not in gymnasium.registry:
    gymnasium.register(id="lrpilot/LRControl-v0", entry_point="envs.lr_control:LRControlEnv")
