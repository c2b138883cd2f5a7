"""The PEFT method: what PEFT calls, from the configuration to the files."""

# PEFT's import registers the method, and that imports modules of this package. Were one of them to import PEFT first,
# it would itself be only half imported by then; so PEFT comes before all of them.
import peft  # noqa: F401
