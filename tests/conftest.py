"""What every test stands on: no network, one torch thread per worker, a fixed seed."""

import getpass
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):  # torch.compile's cache does not tell them apart, but must
    own_cache = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}_{capability}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", own_cache)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Have weights take the layout of training, whichever tests compiled something before in this process."""
    layout = sys.modules.get("paca.method.columns.layout")
    if layout is not None:
        layout._COMPILED.clear()


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Give each test the same random numbers, whichever tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture
def compiler():
    """A compiler that remembers nothing of other tests, and leaves nothing to them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def kernels_on_cpu():
    """Triton's kernels, run by its interpreter."""
    from interpreter import interpreted
    from paca.method.columns.together import has_triton

    if not has_triton():
        pytest.skip("Triton is not installed")
    with interpreted():
        yield
