"""Tenants' batches: run on this site, through its own gateway, when nobody else needs it."""
