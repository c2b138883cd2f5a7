"""What libraries log while they are imported is no news to whoever types a command."""

import logging

import pytest

from paca.workbench.base.asides import hush_imports

SAID = {
    "torch.utils._pytree": (
        "<enum 'KernelPreference'> is an Enum subclass and is now natively supported by torch.compile",
        "another warning",
    ),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward from kernels-community: x", "other %"),
}


@pytest.mark.parametrize("name", SAID)
def test_only_these_lines_are_silenced(name, caplog):
    aside, other = SAID[name]
    logger = logging.getLogger(name)
    caplog.set_level(logging.WARNING, logger=name)
    logger.propagate, before = False, logger.propagate  # to torch's own, which older versions don't propagate either
    logger.addHandler(caplog.handler)
    kept = list(logger.filters)
    try:
        logger.filters.clear()
        logger.warning(aside)
        assert aside in caplog.text, "it would be said"
        caplog.clear()
        hush_imports()
        logger.warning(aside)
        logger.warning(other)
        assert caplog.messages == [other]
    finally:
        logger.removeHandler(caplog.handler)
        logger.filters[:], logger.propagate = kept, before
