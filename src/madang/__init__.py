"""Madang: many micro data centers with Korean AI chips, one AI cloud.

The packages and who may import whom: ARCHITECTURE.md, held by import-linter.
"""

__version__ = "0.1.0"
