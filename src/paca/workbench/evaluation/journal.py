"""Results that are kept one by one as they come, so that a killed evaluation goes on where it was."""

import json
import os
from pathlib import Path
from typing import Any

from paca.errors import PacaError


class Journal:
    """A file of JSON lines, each a key and a value, to which nothing but whole lines is added.

    Args:
        path: The file; made when the first result comes.

    Raises:
        PacaError: If the file holds a line that no journal wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if path.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        """Whether there is a result."""
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        """The result."""
        return self._values[key]

    def __len__(self) -> int:
        """How many results there are."""
        return len(self._values)

    def add(self, key: str, value: Any) -> None:
        """Keep the result of `key`; it is in the operating system's hands, and outlives this process, on return."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False, allow_nan=True) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode("utf-8", "surrogatepass"))
        self._values[key] = value

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line.decode("utf-8", "surrogatepass"))
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise PacaError(
                    f"{self.path}:{number} is no line that an evaluation wrote, so it can't go on from there; add "
                    "--overwrite to start again."
                ) from error
        if whole < len(content):  # a line that was being written when the process was killed
            os.truncate(self.path, whole)
