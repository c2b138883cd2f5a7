"""MT-Bench: two-turn questions, answered by the model, rated by another through an OpenAI-compatible endpoint."""
