"""A run on disk: what it says of itself, its checkpoints, metrics and weights."""
