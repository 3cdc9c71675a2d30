"""Dask: the executor, clusters of one machine and of many, and what moves between their workers."""
