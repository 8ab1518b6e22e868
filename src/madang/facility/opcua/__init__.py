"""OPC UA: equipment and plant controllers with an address space.

Owns the folder's protocol alone. Refuses to know sites and decisions. Made by `madang.facility.roster`.
"""
