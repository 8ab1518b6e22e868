"""Inference engines, one folder each: manifest.toml, codec.py, driver.py, twin.py; none imports another."""
