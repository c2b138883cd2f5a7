"""Adapters as what other programs read: a plain model, a LoRA, PEFT's own format; and the proof that they agree."""

import peft  # noqa: F401  (its import registers PaCA, which imports the layers; the other way round is a circle)
