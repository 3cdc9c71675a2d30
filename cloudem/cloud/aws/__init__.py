"""Amazon EC2: machines, quotas, prices, and what clusters have in an account."""
