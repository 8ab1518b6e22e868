"""MQTT: equipment that publishes plain topics or Sparkplug B at a broker.

Owns the folder's protocol alone. Refuses to know sites and decisions. Made by `madang.facility.roster`.
"""
