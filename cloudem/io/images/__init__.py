"""Images of particles in shards: their layout, in a folder or remote, and the cache between the two."""
