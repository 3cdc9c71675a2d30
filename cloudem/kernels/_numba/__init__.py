"""numba twins of the kernels, for the CPU."""
