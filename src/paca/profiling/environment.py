"""What a result depends on besides the code that made it."""

import importlib.metadata
import platform
from collections.abc import Iterable


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of packages.

    Args:
        packages: Names of distributions.

    Returns:
        By name; without those that are not installed, such as a checkout on the path.
    """
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
