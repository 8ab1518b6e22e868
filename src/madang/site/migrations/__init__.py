"""Alembic migrations of the site's database; part of the package, applied when the site process starts."""
