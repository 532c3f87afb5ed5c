"""For tools that still look for a setup.py; everything stands in pyproject.toml."""

import setuptools

setuptools.setup()
