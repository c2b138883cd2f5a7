"""Lean forwards: which modules of a model can keep less for backward, and the exchange of their forwards."""
