"""Drivers of what stands in a box beside the chips, one folder for each protocol.

Owns what they share: the contract, profiles of devices, and how a raw number becomes a sample. Refuses to know
sites, alarms and decisions. Drivers do not import each other.
"""
