"""What `pykinml frequencies` prints of a minimum, a transition state, a structure that moves, and of several models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.units import kcal, mol
from bound_models import bound_model, minimum, spread_known, upside_down

from pykinml_func.inference.thermochemistry import Conditions, thermochemistry, why_not
from pykinml_func.inference.vibrations import Vibrations, vibrations
from pykinml_func.report.frequencies import print_frequencies

KCAL_PER_MOL = mol / kcal

STANDARD = Conditions()

Shown = tuple[list[str], list[list[str]], dict[str, list[str]]]
"""The lines that are in no table, and the rows of both tables."""
Show = Callable[..., Shown]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Prints vibrations as on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def show(found: Vibrations, conditions: Conditions = STANDARD, output: Path | None = None) -> Shown:
        gas = None if why_not(found) else thermochemistry(found, conditions)
        print_frequencies(found, gas, conditions, output)
        lines = capsys.readouterr().out.splitlines()
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
        modes = [row for row in rows if row[0].isdecimal()]
        energies = {row[0]: row[1:] for row in rows if not row[0].isdecimal()}
        return [line for line in lines if line[:1] not in set("┏┃┡│└")], modes, energies

    return show


def test_a_minimum(shown: Show, tmp_path: Path):
    found = vibrations(bound_model(), minimum("H2CO"))
    conditions = Conditions(temperature=400.0, symmetry=2)
    text, modes, energies = shown(found, conditions, tmp_path / "modes.xyz")
    assert text[0] == "the structure (CH2O): nonlinear, minimum"
    assert text[1] == f"largest force {found.largest_force:.2g} eV/Å"
    assert "translations and rotations, left out below: at most" in text[2]
    assert "ideal gas at 400 K and 101325 Pa, symmetry number 2, spin 0" in text
    assert text[-1] == f"wrote {tmp_path / 'modes.xyz'}" and not any("warning" in line for line in text)
    assert modes == [[str(k), f"{wavenumber:.1f}"] for k, wavenumber in enumerate(found.wavenumbers, start=1)]
    gas, energy = thermochemistry(found, conditions).of_mean, float(found.energies[0])
    assert energies == {
        "energy": [f"{energy:.6f}", ""],
        "zero-point energy": [f"{gas.zero_point_energy:.6f}", f"{gas.zero_point_energy * KCAL_PER_MOL:.3f}"],
        "enthalpy": [f"{gas.enthalpy:.6f}", f"{(gas.enthalpy - energy) * KCAL_PER_MOL:.3f}"],
        "Gibbs energy": [f"{gas.gibbs_energy:.6f}", f"{(gas.gibbs_energy - energy) * KCAL_PER_MOL:.3f}"],
    }


def test_an_ensemble_has_columns_of_its_spread(shown: Show):
    found = vibrations([bound_model(variant) for variant in range(3)], minimum("H2CO"))
    text, modes, energies = shown(found)
    assert "mean of 3 members" in text[0]
    spreads = found.member_wavenumbers.std(axis=0, ddof=1)
    assert [row[2] for row in modes] == [f"{spread:.1f}" for spread in spreads]
    spread = thermochemistry(found).spread
    assert spread is not None
    expected = [np.std(found.energies, ddof=1), spread.zero_point_energy, spread.enthalpy, spread.gibbs_energy]
    assert [cells[-1] for cells in energies.values()] == [f"{value * KCAL_PER_MOL:.3f}" for value in expected]


def test_imaginary_modes_are_marked(shown: Show):
    found = vibrations(upside_down(bound_model()), minimum("CO"))
    text, modes, energies = shown(found)
    assert "linear, transition state" in text[0]
    assert modes == [["1", f"{-found.wavenumbers[0]:.1f}i"]]
    assert energies["zero-point energy"] == ["0.000000", "0.000"]
    relaxed = found._replace(steps=3)
    assert any("warning: relaxed to a saddle point" in line for line in shown(relaxed)[0])
    assert "after 3 steps" in shown(relaxed)[0][1]


def test_too_many_imaginary_modes_have_no_thermochemistry(shown: Show):
    text, modes, energies = shown(vibrations(upside_down(bound_model()), minimum("H2CO")))
    assert "saddle point of order 6" in text[0]
    assert "no zero-point, enthalpy and Gibbs energy: thermochemistry needs a minimum or a transition state" in text[3]
    assert len(modes) == 6 and not energies


@pytest.mark.parametrize("wavenumber", [-0.4, 0.4])
def test_fragments_that_are_apart_have_no_thermochemistry(shown: Show, wavenumber: float):
    """Whichever side of zero their vibration is on."""
    found = vibrations(bound_model(), Atoms("H2", [(0, 0, 0), (20, 0, 0)]), relax=True)
    text, modes, energies = shown(found._replace(wavenumbers=np.array([wavenumber])))
    assert text[0] == "the structure (H2): linear, not one molecule"
    assert "no zero-point, enthalpy and Gibbs energy: thermochemistry needs one molecule, got 1 of 1" in text[3]
    assert modes == [["1", "0.4"]] and not energies and len(text) == 4


def test_says_whether_it_is_beyond_the_training_data(shown: Show):
    found = vibrations(spread_known(0.3), minimum("H2CO"))
    for number, said in (
        (1.234, "! beyond the training data: extrapolation 1.23, above 1"),
        (0.5, "not beyond the training data: extrapolation 0.50"),
    ):
        assert shown(found._replace(extrapolation=number))[0][2] == said
    assert not any("beyond" in line for line in shown(found._replace(extrapolation=np.nan))[0])


def test_a_structure_with_forces_is_warned_of(shown: Show):
    atoms = minimum("H2CO")
    atoms.positions[0] += 0.05
    text = shown(vibrations(bound_model(), atoms))[0]
    assert "no stationary point" in text[0]
    assert any("warning: at a stationary point no force is above 0.01 eV/Å" in line for line in text)


def test_models_that_disagree_have_no_spread(shown: Show):
    found = vibrations([bound_model(), bound_model(1), upside_down(bound_model(2))], minimum("CO"))
    text, _, energies = shown(found)
    assert any(line.startswith("no spread: not all members have the same number of imaginary modes") for line in text)
    assert [cells[-1] for cells in energies.values()][1:] == ["", "", ""]


def test_an_atom_has_no_vibrations(shown: Show):
    text, modes, energies = shown(vibrations(bound_model(), Atoms("O")), Conditions(spin=1.0))
    assert "monatomic, minimum" in text[0] and not modes and len(energies) == 4
    assert "spin 1" in text[3]
