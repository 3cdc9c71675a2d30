"""Micrographs: their images, and the tables of micrographs and of picked particles in results."""
