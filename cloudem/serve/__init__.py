"""Pages of a project in the browser: what its jobs and runs do, what they found, and what they cost."""
