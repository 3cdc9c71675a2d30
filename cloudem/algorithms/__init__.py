"""One batch at a time, arrays in and arrays out."""
