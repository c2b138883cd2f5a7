"""What a step allocates, in bytes of live storages: exact, and the same on every machine."""

from .activations import kept_for_backward
from .peak import Peak, StepTracker
from .tracker import StorageTracker, track

__all__ = ["Peak", "StepTracker", "StorageTracker", "kept_for_backward", "track"]
