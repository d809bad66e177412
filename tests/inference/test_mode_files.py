"""Modes in files, read back as viewers read them."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.units import Bohr
from ase.vibrations import VibrationsData
from bound_models import bound_model, minimum, upside_down

from pykinml_func.errors import ConfigError, DataError
from pykinml_func.inference.mode_files import check_mode_file, write_modes
from pykinml_func.inference.vibrations import Vibrations, vibrations


@pytest.fixture(scope="module")
def found() -> Vibrations:
    return vibrations(bound_model(), minimum("H2CO"))


def directions(found: Vibrations) -> np.ndarray:
    return found.modes / np.linalg.norm(found.modes, axis=(1, 2))[:, None, None]


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz"])
def test_extended_xyz_has_a_frame_a_mode(found: Vibrations, tmp_path: Path, suffix: str):
    write_modes(tmp_path / f"modes{suffix}", found)
    frames = ase.io.read(tmp_path / f"modes{suffix}", index=":", format="extxyz")
    assert [frame.info["mode"] for frame in frames] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([frame.info["wavenumber"] for frame in frames], found.wavenumbers, rtol=1e-12)
    for frame, direction in zip(frames, directions(found), strict=True):
        np.testing.assert_array_equal(frame.numbers, found.atoms.numbers)
        np.testing.assert_allclose(frame.positions, found.atoms.positions, rtol=0, atol=1e-7)
        np.testing.assert_allclose(frame.arrays["mode"], direction, rtol=0, atol=1e-7)


def test_one_mode_moves(found: Vibrations, tmp_path: Path):
    """There and back along its direction, through the structure itself."""
    write_modes(tmp_path / "mode.xyz", found, mode=6)
    frames = ase.io.read(tmp_path / "mode.xyz", index=":")
    moved = np.array([frame.positions for frame in frames]) - found.atoms.positions
    along = np.einsum("fia,ia->f", moved, directions(found)[5])
    np.testing.assert_allclose(moved, along[:, None, None] * directions(found)[5], rtol=0, atol=1e-6)
    np.testing.assert_allclose(along, along.max() * np.sin(np.arange(len(frames)) * 2 * np.pi / len(frames)), atol=1e-6)
    assert np.linalg.norm(moved, axis=2).max() == pytest.approx(0.4, abs=0.01)
    assert all(frame.info["wavenumber"] == pytest.approx(found.wavenumbers[5]) for frame in frames)


def test_json_is_the_vibrations_data_of_ase(found: Vibrations, tmp_path: Path):
    write_modes(tmp_path / "modes.json", found)
    data = VibrationsData.read(tmp_path / "modes.json")
    np.testing.assert_allclose(data.get_hessian(), found.hessians[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(data.get_frequencies()[6:].real, found.wavenumbers, rtol=0, atol=0.01)


def test_molden_is_in_bohr_with_imaginary_modes_negative(tmp_path: Path):
    found = vibrations(upside_down(bound_model()), minimum("CO"))
    write_modes(tmp_path / "modes.molden", found)
    lines = (tmp_path / "modes.molden").read_text().splitlines()
    places = {line: number for number, line in enumerate(lines) if line.startswith("[")}
    assert lines[0] == "[Molden Format]" and list(places)[1:] == [
        "[Atoms] AU",
        "[FREQ]",
        "[FR-COORD]",
        "[FR-NORM-COORD]",
    ]
    assert float(lines[places["[FREQ]"] + 1]) == pytest.approx(found.wavenumbers[0], abs=1e-3)
    assert found.wavenumbers[0] < 0
    rows = [line.split() for line in lines[places["[FR-COORD]"] + 1 : places["[FR-NORM-COORD]"]]]
    assert [row[0] for row in rows] == ["O", "C"]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float) * Bohr, found.atoms.positions, atol=1e-7)
    assert [line.split()[:3] for line in lines[2:4]] == [["O", "1", "8"], ["C", "2", "6"]]
    assert lines[places["[FR-NORM-COORD]"] + 1] == "vibration 1"
    rows = [line.split() for line in lines[places["[FR-NORM-COORD]"] + 2 :]]
    np.testing.assert_allclose(np.array(rows, float), directions(found)[0], atol=1e-7)


def test_an_atom_has_no_modes_to_write(tmp_path: Path):
    """But a Hessian."""
    alone = vibrations(bound_model(), Atoms("O"))
    for suffix in (".xyz", ".extxyz", ".molden"):
        with pytest.raises(DataError, match=r"\(O\) has no modes to write to .*; leave the output out"):
            write_modes(tmp_path / f"modes{suffix}", alone)
    assert not list(tmp_path.iterdir())
    write_modes(tmp_path / "modes.json", alone)
    np.testing.assert_array_equal(VibrationsData.read(tmp_path / "modes.json").get_hessian(), alone.hessians[0])


def test_says_what_is_wrong(found: Vibrations, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"output must end in .xyz, .extxyz, .molden or .json, got modes.traj"):
        check_mode_file(Path("modes.traj"))
    with pytest.raises(ConfigError, match=r"make .*nowhere first"):
        write_modes(tmp_path / "nowhere" / "modes.xyz", found)
    with pytest.raises(ConfigError, match=r"the motion of mode 2 is written as .xyz or .extxyz, got .*modes.molden"):
        write_modes(tmp_path / "modes.molden", found, mode=2)
    for mode in (0, 7):
        with pytest.raises(DataError, match=f"has modes 1 to 6, got {mode}"):
            write_modes(tmp_path / "modes.xyz", found, mode=mode)
    assert not list(tmp_path.iterdir())
