"""The command `paca` and all that its verbs do."""
