"""What the gateway costs, beside other gateways in the same run. Run as `python -m bench.gateway`; ADR 22 says why so.

Owns the loads, the synthetic engine, the peers' flags and the report. Refuses to judge correctness: tests do.
"""
