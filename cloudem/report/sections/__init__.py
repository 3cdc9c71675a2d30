"""The sections of a report, one module for each kind, and the figures in them."""
