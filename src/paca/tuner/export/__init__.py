"""Adapters as what other programs read: a plain model, a LoRA, PEFT's own format; and the proof that they agree."""
