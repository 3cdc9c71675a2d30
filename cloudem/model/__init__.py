"""Optics, particles, poses, symmetry and volumes: the nouns."""
