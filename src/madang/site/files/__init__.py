"""Tenants' files: kept on this site, encrypted at rest, with an end. `madang.site.app` wires it."""
