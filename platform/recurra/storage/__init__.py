"""Bytes in, bytes out: one small interface over S3-compatible stores and local directories."""
