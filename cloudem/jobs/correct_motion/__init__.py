"""``cloudem correct-motion``: movies become micrographs."""
