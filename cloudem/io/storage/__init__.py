"""Where things are kept: a folder or S3, documents compared and swapped, leases, groups of arrays."""
