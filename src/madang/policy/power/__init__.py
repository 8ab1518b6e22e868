"""What a site does about its power, cooling and safety: proposers that ask, and the authority that decides.

Owns the choices. Refuses to know devices, protocols and clocks: readings, facts and the time are arguments.
"""
