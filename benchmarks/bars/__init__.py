"""The parts of ``run_bars.py``."""
