"""Sans-I/O state machines: events in, effects out. Refuse to await, read a clock, log or open anything."""
