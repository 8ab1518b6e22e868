"""The federation: desired state, tenants, catalog, ledger, audit. Knows nothing of requests in flight."""
