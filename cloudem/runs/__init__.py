"""Runs of several jobs on rented machines: planned, watched, paid for and accounted for."""
