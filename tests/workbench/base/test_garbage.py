"""What the garbage collector goes through while a command runs."""

import gc

import pytest

from paca.workbench.base.garbage import imports_spared


def test_what_was_imported_is_not_gone_through():
    before = len(gc.get_objects())
    with imports_spared() as imported:
        assert not gc.isenabled()
        imported()
        assert gc.isenabled()
        assert len(gc.get_objects()) < before / 10
        assert gc.get_freeze_count() > before - 1000
        fresh: list[object] = []
        fresh.append(fresh)
        del fresh
        assert gc.collect() > 0, "what is new is collected"
    assert gc.get_freeze_count() == 0
    assert len(gc.get_objects()) > before / 2


def fail(during):
    with imports_spared() as imported:
        if during == "work":
            imported()
        raise KeyError


@pytest.mark.parametrize("during", ["imports", "work"])
@pytest.mark.parametrize("enabled", [True, False])
def test_afterwards_it_collects_as_before_whatever_happened(enabled, during):
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(KeyError):
            fail(during)
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
