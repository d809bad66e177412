"""What `pykinml evaluate` prints: every number, however narrow the terminal, and whether spreads are calibrated."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import flat

from pykinml_func.inference.evaluation import Beyond, Bin, CalibrationTable, Errors, Evaluation, LevelErrors
from pykinml_func.report.evaluation import print_evaluation

ERRORS = Errors(123456, 172751.123, 272751.123, 372751.123)
BIN = Bin(1234567, 123456.789, 1234567.891)


def found(energy_is: bool, force_is: bool) -> Evaluation:
    """Of large errors. energy_is, force_is: whether they are calibrated."""
    tables = [
        CalibrationTable(1234567, 1.5, (0.5, 0.8), (0.6, 0.9), (BIN, BIN), calibrated)
        for calibrated in (energy_is, force_is)
    ]
    beyond = Beyond(17, ERRORS, ERRORS, ERRORS, ERRORS)
    return Evaluation(123456, 4, None, (LevelErrors(1, ERRORS, ERRORS),), tables[0], tables[1], beyond)


@pytest.mark.parametrize("columns", ["30", "60", "80"])
def test_no_number_is_lost(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_evaluation(found(True, True), Path("model.safetensors"), [Path("a.db")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    errors = ["123456", "172751.123", "272751.123", "372751.123"] * 2
    for name in ("1", "beyond", "others"):
        assert [name, *errors] in rows
    assert rows.count(["1234567", "123456.789", "1234567.891"]) == 4


def test_says_which_standard_deviations_are_calibrated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_evaluation(found(True, False), Path("model.safetensors"), [Path("a.db")])
    text = flat(capsys.readouterr().out)
    assert "standard deviations of 1234567 energies, calibrated: errors are 1.50 times as large as they say" in text
    assert "of 1234567 force components, not calibrated: errors" in text
