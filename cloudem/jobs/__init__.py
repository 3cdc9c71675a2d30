"""One declaration per job."""
