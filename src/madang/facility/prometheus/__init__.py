"""Prometheus: what exporters know of a host, its disks and its links.

Owns the folder's protocol alone. Refuses to know sites and decisions. Made by `madang.facility.roster`.
"""
