"""The site's side of money leases: durable pots, the workers' tables, and the talk with the hub."""
