"""The two verbs map and accumulate, on a serial executor and on Dask."""
