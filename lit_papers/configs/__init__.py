"""Shipped run configurations, one folder per paper; found by name on the command line."""
