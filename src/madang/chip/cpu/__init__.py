"""The `cpu` chip driver: the machine's processors as one chip that several engines share."""
