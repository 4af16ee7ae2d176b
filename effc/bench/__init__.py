"""``effc bench``: models and kernels timed against PyTorch and its other compilers, in turn."""
