"""Devices and the compiler."""
