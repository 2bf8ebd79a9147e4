"""Measurements that a person runs and reads; tests hold what is right, these tell what it costs."""
