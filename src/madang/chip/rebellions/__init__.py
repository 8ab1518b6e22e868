"""The `rebellions` chip driver: Rebellions ATOM, ATOM+, ATOM-Max and REBEL."""
