"""Plain NumPy references of every kernel; the compiled twins are in ``_numba`` and ``_cupy``."""
