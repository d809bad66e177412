"""What `pykinml predict` prints: every number, however narrow the terminal."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from pykinml_func.inference.predictor import Prediction
from pykinml_func.report.predictions import print_predictions

METHANE = molecule("CH4")
ENERGIES = -1234.567891, -12345.678912
FORCE, STD, FORCE_STD = 12.345678, 3.4567, 23.456
"""eV and eV/Å; forces are the largest"""


def predicted(levels: int, is_difference: bool = False, extrapolation: float = 12.34) -> Prediction:
    """Of an ensemble of two, whose largest force is on one atom."""
    forces, stds = np.zeros((levels, 5, 3)), np.zeros((5, 3))
    forces[:, 2, 1], stds[3, 0] = -FORCE, FORCE_STD
    energies = np.array(ENERGIES[-levels:])
    known = {"energy_std": STD, "forces_std": stds, "distance": extrapolation}
    members = np.stack([energies] * 2), np.stack([forces] * 2)
    return Prediction(tuple(range(levels)), is_difference, energies, forces, *members, **known)


KINDS = {"one level": (1, False), "two levels": (2, False), "difference": (1, True)}


@pytest.mark.parametrize("kind", ["one level", "difference"])
def test_what_can_be_made_to_fit_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_predictions([METHANE], [predicted(*KINDS[kind])], None)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["40", "60", "80", "120", None], ids=lambda each: each or "pipe")
@pytest.mark.parametrize("kind", KINDS)
def test_no_number_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, columns: str | None
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    levels, is_difference = KINDS[kind]
    print_predictions([METHANE] * 2, [predicted(levels, is_difference)] * 2, None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] in "┏┃┡│└"]
    assert len({len(line) for line in lines}) == 1, "whole, with its right border"
    numbers = [text for energy in ENERGIES[-levels:] for text in (f"{energy:.6f}", f"{FORCE:.6f}")]
    for number, line in enumerate((line for line in lines if line[0] == "│"), start=1):
        assert [cell.strip() for cell in line.split("│")[1:-1]] == [
            *(str(number), "CH4", *numbers),
            *(f"{STD:.4f}", f"{FORCE_STD:.3f}", "! 12.34"),
        ]
    words = " ".join(line.replace("┃", " ") for line in lines if line[0] == "┃").split()
    for word in ("energy", "largest", "force", "eV/Å", "extra-", *(["difference,"] if is_difference else [])):
        assert word in words


def test_headers_stay_on_a_line_where_there_is_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_predictions([METHANE], [predicted(2)], None)
    assert "largest force of level 1, eV/Å" in capsys.readouterr().out


def test_only_what_is_above_1_lies_beyond_the_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    images: list[Atoms] = [METHANE] * 3
    print_predictions(images, [predicted(1, extrapolation=number) for number in (0.5, 1.0, np.nextafter(1, 2))], None)
    out = capsys.readouterr().out
    assert "! 1 of 3 structures beyond the training data" in out
    assert out.count("! 1.00 ") == 1
