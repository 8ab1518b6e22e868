"""NUT: what a Network UPS Tools server (upsd) knows of its UPSs.

Owns the folder's protocol alone. Refuses to know sites and decisions. Made by `madang.facility.roster`.
"""
