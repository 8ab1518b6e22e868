"""Pure choices: residency, routing, placement. The same functions run in production and in the simulator.

Owns decisions. Refuses to know requests, sessions, sockets and clocks: everything is an argument.
"""
