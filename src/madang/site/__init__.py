"""One site: observed state, applied desired state, outbox, the gateway's feed. Works with the hub out of reach."""
