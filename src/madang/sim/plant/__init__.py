"""The plant twin: electrical and thermal equations of a box, stepped in time, with faults on command.

Owns the physics and, in `program`, the process that serves it through the drivers' twins. Refuses to know what a
site does about any of it.
"""
