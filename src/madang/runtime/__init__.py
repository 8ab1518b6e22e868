"""The shell kit: clock, settings, telemetry, processes, supervision, bus, store, secrets, HTTP.

Owns what every service's shell needs once. Refuses to know any service and to decide anything.
"""
