"""Trained potentials at work."""
