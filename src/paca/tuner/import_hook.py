"""Runs a function when a package has been imported, or at once if it has been already.

So that `import paca` makes PEFT know the method without importing PEFT, which takes seconds.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType


class _AfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, package: str, callback: Callable[[], None]) -> None:
        self.package = package
        self.callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the package as if this finder did not exist, and have the callback follow its execution.

        Many only look whether a package is there, so the finder stays until one of the specs that it gave is executed.
        """
        if fullname != self.package:
            return None
        with self._away():
            spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            with suppress(ValueError):  # another import got here first
                sys.meta_path.remove(self)
            execute(module)
            self.callback()

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec

    @contextmanager
    def _away(self) -> Iterator[None]:
        sys.meta_path.remove(self)
        try:
            yield
        finally:
            sys.meta_path.insert(0, self)


def after_import(package: str, callback: Callable[[], None]) -> None:
    """Call `callback` once `package` has been imported.

    Args:
        package: Name of a top-level package.
        callback: Called without arguments, at once if the package is there already.
    """
    if package in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _AfterImport(package, callback))
