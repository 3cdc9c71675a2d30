"""Classes of like images without a reference: declaration, run, tasks."""
