"""The PEFT method: what PEFT calls, from the configuration to the files."""
