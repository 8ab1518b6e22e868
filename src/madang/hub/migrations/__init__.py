"""Alembic migrations of the hub's database; part of the package, applied when the hub starts."""
