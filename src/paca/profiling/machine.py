"""What times belong to: the processor, the accelerator, and how busy the machine was."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine.

    Args:
        device: What the steps run on.

    Returns:
        Processor, cores, threads, load, and the accelerator's name.
    """
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
