"""What a result depends on besides the code that made it."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of the installed ones among these distributions, by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine: processor, cores, threads, load, and the accelerator's name."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def cpu_name(listing: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name, as Linux lists it; elsewhere what Python knows of it."""
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
