"""Measurements: each module states its question and prints its figures."""
