"""Modbus TCP: meters, cooling units and I/O modules by register map, and SunSpec devices by model."""
