"""Routes of the hub's admin API: they decode, call one action, and encode. No rule lives here."""
