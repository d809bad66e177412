"""Normal modes in files that viewers open: extended XYZ, Molden, and ASE's VibrationsData as JSON.

# n atoms, V vibrations
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.units import Bohr

from pykinml_func.errors import ConfigError, DataError
from pykinml_func.files import write_atomically
from pykinml_func.inference.checks import structure_label
from pykinml_func.inference.vibrations import Vibrations

_SUFFIXES = (".xyz", ".extxyz", ".molden", ".json")
_FRAMES = 24
"""of one period"""
_AMPLITUDE = 0.4
"""Å that the atom which moves most is moved"""


def check_mode_file(path: Path, mode: int | None = None) -> None:
    """Raises ConfigError for a name or a folder that `write_modes` cannot write to."""
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"output must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, got {path}")
    if mode is not None and path.suffix not in _SUFFIXES[:2]:
        raise ConfigError(f"the motion of mode {mode} is written as .xyz or .extxyz, got {path}; name it so")
    if not path.parent.is_dir():
        raise ConfigError(f"output must go to a directory that is there, got {path}; make {path.parent} first")


def write_modes(path: str | Path, found: Vibrations, mode: int | None = None) -> None:
    """Write the vibrations, whole or not at all, in the format that the suffix names.

    .xyz and .extxyz: a frame a mode, its displacements as `arrays["mode"]` and its `wavenumber` (cm^-1, negative if
    imaginary) as Jmol and ASE read them; of one `mode`, counted from 1, the frames of its motion. .molden: wavenumbers
    and modes. .json: what `ase.vibrations.VibrationsData.read` reads, also of an atom. Raises ConfigError as
    `check_mode_file`, and DataError for a mode that is not there.
    """
    path = Path(path)
    check_mode_file(path, mode)
    if not len(found.modes) and path.suffix != ".json":
        raise DataError(f"{structure_label(found.atoms)} has no modes to write to {path}; leave the output out")
    if mode is not None and not 1 <= mode <= len(found.modes):
        raise DataError(
            f"{structure_label(found.atoms)} has modes 1 to {len(found.modes)}, got {mode}; give one of them"
        )
    if path.suffix == ".json":
        from ase.io.jsonio import write_json

        write_atomically(path, lambda temporary: write_json(temporary, found.data))
    elif path.suffix == ".molden":
        text = "\n".join(_molden_lines(found)) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    else:
        import ase.io

        frames = _all_modes(found) if mode is None else _motion(found, mode)
        write_atomically(path, lambda temporary: ase.io.write(temporary, list(frames), format="extxyz"))


def _directions(found: Vibrations) -> np.ndarray:
    """(V,n,3): displacements of length 1."""
    return found.modes / np.linalg.norm(found.modes, axis=(1, 2), keepdims=True)


def _all_modes(found: Vibrations) -> Iterator[Atoms]:
    for number, (wavenumber, direction) in enumerate(zip(found.wavenumbers, _directions(found), strict=True), start=1):
        frame = Atoms(found.atoms.numbers, found.atoms.positions, info={"mode": number, "wavenumber": wavenumber})
        frame.arrays["mode"] = direction
        yield frame


def _motion(found: Vibrations, mode: int) -> Iterator[Atoms]:
    direction, info = found.modes[mode - 1], {"mode": mode, "wavenumber": found.wavenumbers[mode - 1]}
    step = _AMPLITUDE * direction / np.linalg.norm(direction, axis=1).max()
    for phase in np.arange(_FRAMES) * 2 * np.pi / _FRAMES:
        yield Atoms(found.atoms.numbers, found.atoms.positions + np.sin(phase) * step, info=info)


def _molden_lines(found: Vibrations) -> Iterator[str]:
    """Wavenumbers in cm^-1, imaginary ones negative; coordinates and displacements in Bohr."""
    symbols, numbers = found.atoms.get_chemical_symbols(), found.atoms.numbers
    places = [_triple(position / Bohr) for position in found.atoms.positions]
    yield from ("[Molden Format]", "[Atoms] AU")
    for k, (symbol, number, place) in enumerate(zip(symbols, numbers, places, strict=True), start=1):
        yield f"{symbol} {k} {number} {place}"
    yield "[FREQ]"
    yield from (f"{wavenumber:.4f}" for wavenumber in found.wavenumbers)
    yield "[FR-COORD]"
    yield from (f"{symbol} {place}" for symbol, place in zip(symbols, places, strict=True))
    yield "[FR-NORM-COORD]"
    for k, direction in enumerate(_directions(found), start=1):
        yield f"vibration {k}"
        yield from (_triple(atom) for atom in direction)


def _triple(values: np.ndarray) -> str:
    return " ".join(f"{value:.8f}" for value in values)
