"""Standard streams that no terminal and no pipe can break: what they can't show is escaped, and readers may go.

What a verb does is worth more than what it prints: a run whose output goes to `| head` trains to its end.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class LastingStream:
    """A text stream that goes on where nothing can be written to any more; that is lost then.

    Args:
        stream: The stream itself.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        self.before_write: Callable[[str], None] = lambda _: None

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        with self._going_on():
            self.before_write(text)
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose what was written."""
        with self._going_on():
            self.stream.flush()

    def writelines(self, lines: Any) -> None:
        """Write one after another."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            with contextlib.suppress(OSError, ValueError):  # what is buffered would fail again when Python ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Have such streams in a `with` block; gives standard output.

    Characters that an encoding has not are written as `\\u2192`, bytes of the input that are no text raise.
    """
    given = sys.stdin, sys.stdout, sys.stderr
    # A process that was started without one has None there.
    stdin, *outputs = (stream or open(os.devnull, mode) for stream, mode in zip(given, "rww", strict=True))  # noqa: SIM115
    for stream, errors in ((stdin, "strict"), *((output, "backslashreplace") for output in outputs)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
    stdout, stderr = map(LastingStream, outputs)
    sys.stdin, sys.stdout, sys.stderr = stdin, stdout, stderr  # type: ignore[assignment]
    try:
        yield stdout
    finally:
        stdout.flush()
        stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = given
