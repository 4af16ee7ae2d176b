"""Running compiled kernels on NVIDIA GPUs."""
