"""What a training step of a model needs, worked out without its weights and without a GPU."""
