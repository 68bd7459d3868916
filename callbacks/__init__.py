"""Measurements that attach to any Lightning project as callbacks."""
