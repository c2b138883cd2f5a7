"""Loads base models and adapters, and generates text with them."""
