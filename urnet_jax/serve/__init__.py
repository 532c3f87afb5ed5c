"""What answers: a trained network behind a function, or behind a server.

For applications: `urnet_jax.load`, which gives a `predictor.Predictor`.
"""
