"""The embedded federation behind `madang up`: hub, national entry and three sites on one machine, real parts only."""
