"""The one exception that a user's mistake raises."""


class PacaError(ValueError):
    """A call, a configuration or a file that cannot work; the message says what to type instead.

    It is a `ValueError`, so that code written for PEFT's other methods, which catches that, goes on working.
    """
