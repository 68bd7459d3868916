"""Runs that are started, watched, resumed and collected: what ``sweep`` and ``reproduce`` share. Free of torch."""
