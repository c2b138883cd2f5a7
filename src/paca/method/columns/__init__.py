"""Where columns are written into base weights and put back."""
