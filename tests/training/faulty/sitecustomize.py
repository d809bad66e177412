"""Python imports this where it starts: the rank that MISHAP names is prepared for it."""

import os

rank, _, blow = os.environ.get("MISHAP", "").partition(" ")
if rank and rank == os.environ.get("RANK"):
    from mishap import befall

    batch, what = blow.split()
    befall(int(batch), what)
