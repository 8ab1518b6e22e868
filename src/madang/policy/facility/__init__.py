"""What follows from a site's model and readings: findings, headroom, PUE, margins, runtime, prices, energy's money.

Owns these derivations, pure. Refuses to know protocols, files and what is done about them (`madang.policy.power`).
"""
