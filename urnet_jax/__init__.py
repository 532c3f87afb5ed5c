"""User-resizable residual networks in JAX: one set of weights, compute chosen per request."""

__version__ = "0.1.0"
