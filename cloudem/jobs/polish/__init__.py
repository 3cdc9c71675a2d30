"""Polishing: particles followed through the frames of their movies."""
