"""One thread per process: the tests' networks are too small for more, and cores may be shared."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
