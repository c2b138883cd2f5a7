"""Runs a function when a package has been imported, or at once if it has been already.

So that `import paca` makes PEFT know the method without importing PEFT, which takes seconds.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


class _AfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, package: str, callback: Callable[[], None]) -> None:
        self.package = package
        self.callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the package as if this finder did not exist, and have the callback follow its execution."""
        if fullname != self.package:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return None
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            self.callback()

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


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
