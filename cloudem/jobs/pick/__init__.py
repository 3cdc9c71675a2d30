"""``cloudem pick``: declaration, learning, tasks, and what the result holds."""
