"""The commands of `pykinml`, a file each: they parse, call, and print."""
