"""The `mobilint` chip driver: Mobilint ARIES (MLA100)."""
