"""The `external` engine: a door to an endpoint that somebody else runs at this site."""
