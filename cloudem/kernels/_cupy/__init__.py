"""CuPy twins of the kernels, for the GPU."""
