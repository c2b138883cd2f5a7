"""PEFT methods that a recipe can name."""
