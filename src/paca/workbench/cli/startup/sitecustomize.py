"""Imported by every Python process that `paca exec` starts: makes PEFT know PaCA, as soon as PEFT is imported."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

try:
    import paca  # noqa: F401  (light: it waits for PEFT)
    from paca.workbench.base.asides import hush_imports

    hush_imports()
except ImportError as error:
    print(f"paca exec: this Python ({sys.executable}) has no paca: {error}", file=sys.stderr)

# Only the first sitecustomize on the path is imported; the one that this one hides runs after it.
HERE = str(Path(__file__).resolve().parent)
others = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != HERE]
hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if hidden is not None and hidden.loader is not None:
    hidden.loader.exec_module(importlib.util.module_from_spec(hidden))
