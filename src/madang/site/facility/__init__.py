"""The site's power, cooling and security: devices polled, alarms, the envelope and who acts on it.

Owns the shells around `madang.policy.facility`, `madang.policy.power` and `madang.machine.alarm`. Refuses to decide.
Works with the hub and the WAN away; without a site file none of it runs.
"""
