"""SNMP v2c and v3: UPSs, rack PDUs, cooling units, environment sensors and switches, by GET lists."""
