"""Machinery of the job file: knows no model and no trainer."""
