"""Results that are kept one by one as they come, so that a killed evaluation resumes where it was."""

import json
import os
from pathlib import Path
from typing import Any

from paca.errors import PacaError


class Journal(dict[str, Any]):
    """A file of JSON lines, each a key and a value, to which nothing but whole lines is added.

    Args:
        path: The file; made when the first result comes.

    Raises:
        PacaError: If the file holds a line that no journal wrote.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            self._read()

    def add(self, key: str, value: Any) -> None:
        """Keep the result of `key`; it is in the operating system's hands, and outlives this process, on return."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False, allow_nan=True) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode("utf-8", "surrogatepass"))
        self[key] = value

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line.decode("utf-8", "surrogatepass"))
                self[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise PacaError(
                    f"{self.path}:{number} is no line that an evaluation wrote, so it can't be resumed; add "
                    "--overwrite to start again."
                ) from error
        if whole < len(content):  # a line that was being written when the process was killed
            os.truncate(self.path, whole)
