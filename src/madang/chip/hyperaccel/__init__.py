"""The `hyperaccel` chip driver: HyperAccel LPU on FPGA cards, found but not read."""
