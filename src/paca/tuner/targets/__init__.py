"""Which modules an adapter is put on, and the reasons that speak against it."""
