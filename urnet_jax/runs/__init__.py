"""A run on disk: what it says of itself, its checkpoints, metrics and weights.

For applications: `load.load_network`, `export.export_workdir`, `bundle.read`, `writers.read`.
"""
