"""Reconstruction from known poses: declaration and run."""
