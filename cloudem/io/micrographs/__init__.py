"""Micrographs: their table, their images, and what they are imported from."""
