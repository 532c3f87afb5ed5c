"""Devices and the compiler.

For applications: `compilation.compiler_options`, `sharding.make_mesh`, `cache.keep_compiled`.
"""
