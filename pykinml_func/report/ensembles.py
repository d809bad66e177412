"""What `pykinml combine` and `pykinml split` print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from pykinml_func.types import Ensemble

_LABEL_WIDTH = 13


def print_combined(output: Path, ensemble: Ensemble) -> None:
    """The file, and what is known of where its predictions hold."""
    print(f"wrote {output}: {ensemble.n_members} members")
    domain = "none: the models have not all the same one" if ensemble.domain is None else "that of the models"
    print(f"{'domain':{_LABEL_WIDTH}}{domain}")
    for line in _calibration(ensemble):
        print(f"{'calibration':{_LABEL_WIDTH}}{line}")


def _calibration(ensemble: Ensemble) -> Iterator[str]:
    """A line a level."""
    if ensemble.calibration is None:
        yield "none: spreads are standard deviations as they are; --calibrate fits them to labels"
        return
    scales = zip(*(scale.tolist() for scale in ensemble.calibration[:2]), strict=True)
    for level, of_level in zip(ensemble.model_config.fidelities, scales, strict=True):
        energy, force = ("not known" if math.isnan(scale) else f"times {scale:.3g}" for scale in of_level)
        yield f"level {level}: spread of energies {energy}, of forces {force}"


def print_split(paths: Sequence[Path]) -> None:
    """The files."""
    print(f"wrote {len(paths)} models, {paths[0]} to {paths[-1].name}")
