"""Exports that are loaded again and compared before they are handed over."""
