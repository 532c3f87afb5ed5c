"""The version, which the lowest wing may ask for."""

__version__ = "0.1.0"
