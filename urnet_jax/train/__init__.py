"""What moves weights.

For applications: `loop.train_and_evaluate`.
"""
