"""Inference engines, one folder each: manifest.toml, codec.py, driver.py, twin.py; none imports another.

This module and each folder's own stay empty: engines are children that import them, and are to start fast and
stay small.
"""
