"""The simulator: what stands in for a site's surroundings when there are none.

Owns the plant twin; everything from here says that it is simulated. Refuses to decide anything about a site.
"""
