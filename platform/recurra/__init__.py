"""Recurra trains recurrent networks on a Ray cluster and serves them from the same cluster."""

__version__ = "0.1.0"
