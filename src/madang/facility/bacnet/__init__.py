"""BACnet/IP: building controllers and cooling equipment.

Owns the folder's protocol alone. Refuses to know sites and decisions. Made by `madang.facility.roster`.
"""
