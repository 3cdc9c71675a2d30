"""Classes of particles whose poses are known, by their maps: declaration and run."""
