"""One server: its chips and the engine processes on them. Owns device handles; knows no tenant."""
