"""Readers and writers of the files that structures come in."""
