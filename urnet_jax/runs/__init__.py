"""A run on disk: what it says of itself, its checkpoints, metrics and weights.

For applications: `load.load_network`, `pretrained.export_workdir`, `writers.read`.
"""
