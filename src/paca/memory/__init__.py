"""What a step allocates, in bytes of live storages: exact, and the same on every machine."""

from .activations import kept_for_backward
from .tracker import StorageTracker, track

__all__ = ["StorageTracker", "kept_for_backward", "track"]
