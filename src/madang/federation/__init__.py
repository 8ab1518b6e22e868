"""The embedded federation behind `madang up`: hub, national entry and three sites on one machine, real parts only.

Owns the map of one machine, the relay that stands for the WAN, and the first day's state. Refuses to take part in
requests: no program knows that its neighbours are on the same machine. Called by `madang.cli`.
"""
