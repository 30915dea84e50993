"""Structured events and metrics: one table names every metric; one endpoint shows the whole fleet."""
