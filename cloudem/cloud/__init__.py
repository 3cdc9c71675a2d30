"""Machines that are rented: what they are, what they cost, which to take, and how to take and return them."""
