"""Losses, optimisers, the training step and the loop around it."""
