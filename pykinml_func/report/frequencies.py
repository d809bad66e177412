"""What `pykinml frequencies` shows of one structure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pykinml_func.inference.checks import structure_label
from pykinml_func.inference.thermochemistry import Conditions, EnsembleThermochemistry, why_not
from pykinml_func.inference.vibrations import AT_REST, ZERO, Vibrations
from pykinml_func.units import KCAL_PER_MOL

_KINDS = ("minimum", "transition state")
"""What a stationary point of none and of one imaginary mode is, where no vibration is of zero."""


def print_frequencies(
    found: Vibrations, gas: EnsembleThermochemistry | None, conditions: Conditions, output: Path | None
) -> None:
    """Wavenumbers (cm^-1), zero-point energy, enthalpy and Gibbs energy (eV, and kcal/mol from the electronic energy),
    with their spread where there are several members, and where the modes were written.

    gas: None where something keeps the structure from it (see `why_not`).
    """
    console = Console()
    for line in _facts(found):
        console.print(line, soft_wrap=True, highlight=False)
    if len(found.wavenumbers):
        console.print(_wavenumbers_table(found))
    for line in _gas_facts(found, gas, conditions):
        console.print(line, soft_wrap=True, highlight=False)
    if gas is not None:
        console.print(_energies_table(found, gas))
    if output is not None:
        console.print(f"wrote {output}", soft_wrap=True)


def _facts(found: Vibrations) -> Iterator[str]:
    members = "" if len(found.energies) == 1 else f", mean of {len(found.energies)} members"
    yield f"{structure_label(found.atoms)}: {found.geometry}, {_kind(found)}{members}"
    relaxed = "" if found.steps is None else f", after {found.steps} steps"
    yield f"largest force {found.largest_force:.2g} eV/Å{relaxed}"
    if found.extrapolation > 1:
        yield f"! beyond the training data: extrapolation {found.extrapolation:.2f}, above 1"
    elif not math.isnan(found.extrapolation):
        yield f"not beyond the training data: extrapolation {found.extrapolation:.2f}"
    if found.largest_force > AT_REST:
        yield (
            f"warning: at a stationary point no force is above {AT_REST:g} eV/Å, wavenumbers elsewhere mean little; "
            "relax it (--relax), or, for a transition state, look for the one of this model first"
        )
    elif found.steps is not None and found.n_imaginary:
        yield "warning: relaxed to a saddle point, as symmetry can make it; move it along an imaginary mode, and again"
    whole = np.abs(found.whole_wavenumbers).max()
    yield f"translations and rotations, left out below: at most {whole:.2g} cm^-1"


def _kind(found: Vibrations) -> str:
    if found.largest_force > AT_REST:
        return "no stationary point"
    if found.n_zero:
        return "not one molecule"
    return _KINDS[found.n_imaginary] if found.n_imaginary < 2 else f"saddle point of order {found.n_imaginary}"


def _gas_facts(found: Vibrations, gas: EnsembleThermochemistry | None, conditions: Conditions) -> Iterator[str]:
    if gas is None:
        yield f"no zero-point, enthalpy and Gibbs energy: thermochemistry {why_not(found)}"
        return
    temperature, pressure, symmetry, spin = conditions
    yield f"ideal gas at {temperature:g} K and {pressure:g} Pa, symmetry number {symmetry}, spin {spin:g}"
    if len(found.energies) > 1 and not gas.members:
        yield "no spread: not all members have the same number of imaginary modes here, and no vibration of zero"


def _wavenumbers_table(found: Vibrations) -> Table:
    several = len(found.energies) > 1
    table = Table("mode", "wavenumber, cm^-1", *(["spread, cm^-1"] if several else []))
    for column in table.columns:
        column.justify = "right"
    spreads = found.member_wavenumbers.std(axis=0, ddof=1) if several else found.wavenumbers
    for number, (wavenumber, spread) in enumerate(zip(found.wavenumbers, spreads, strict=True), start=1):
        mark = "i" if wavenumber < -ZERO else " "
        table.add_row(str(number), f"{abs(wavenumber):.1f}{mark}", *([f"{spread:.1f}"] if several else []))
    return table


def _energies_table(found: Vibrations, gas: EnsembleThermochemistry) -> Table:
    """Energies, how far they are from the electronic one, and their standard deviations over the members."""
    several, spread = len(found.energies) > 1, gas.spread
    table = Table("", "eV", "from the energy, kcal/mol", *(["spread, kcal/mol"] if several else []))
    for column in table.columns[1:]:
        column.justify = "right"
    energy = float(found.energies.mean())
    deviation = _kcal(float(found.energies.std(ddof=1))) if several else ""
    table.add_row("energy", f"{energy:.6f}", "", *([deviation] if several else []))
    for name, field, start in (
        ("zero-point energy", "zero_point_energy", 0.0),
        ("enthalpy", "enthalpy", energy),
        ("Gibbs energy", "gibbs_energy", energy),
    ):
        value = getattr(gas.of_mean, field)
        deviation = _kcal(getattr(spread, field)) if spread else ""
        table.add_row(name, f"{value:.6f}", _kcal(value - start), *([deviation] if several else []))
    return table


def _kcal(energy: float) -> str:
    return f"{energy * KCAL_PER_MOL:.3f}"
