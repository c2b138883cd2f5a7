"""What changes when a model is trained by several processes."""

from .indices import without_indices
from .ranks import check_ranks
from .traffic import Traffic, count_traffic

__all__ = ["Traffic", "check_ranks", "count_traffic", "without_indices"]
