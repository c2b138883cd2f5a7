"""What every test stands on: no network, one torch thread per worker, a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Give each test the same random numbers, whichever tests ran before it in its process."""
    torch.manual_seed(0)
