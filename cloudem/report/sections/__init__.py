"""Parts of pages: figures and tables."""
