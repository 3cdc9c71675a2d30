"""A cloud and its markets, simulated: for tests and benchmarks."""
