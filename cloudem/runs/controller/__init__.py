"""What runs on the head node."""
