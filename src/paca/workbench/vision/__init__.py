"""Image classification: data, models, pictures of what went wrong, and the run of a recipe whose task it is."""
