"""The `nvidia` chip driver: NVIDIA GPUs through NVML."""
