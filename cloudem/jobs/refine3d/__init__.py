"""Gold-standard refinement: declaration, run, tasks, cost."""
