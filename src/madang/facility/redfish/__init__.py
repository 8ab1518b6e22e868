"""Redfish: what BMCs, rack PDUs and coolant distribution units say of themselves over HTTP.

Owns the folder's protocol alone. Refuses to know sites and decisions. Made by `madang.facility.roster`.
"""
