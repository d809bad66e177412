from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from bench.machine import machine
from pykinml_func.data.formats.database import read_databases
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.types import Structures

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
N_TEST = 120


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        return import_module("bench.fidelities")


@pytest.fixture(scope="module")
def structures(bench: ModuleType) -> Structures:
    """The bundled databases."""
    return bench.read(DATA)


@pytest.fixture
def command(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the benchmark's `main` as the command line does; no run may begin."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("a run has begun")

    monkeypatch.setattr(bench, "ProcessPoolExecutor", begun)
    monkeypatch.setenv("COLUMNS", "300")
    app = typer.Typer()
    app.command()(bench.main)
    return lambda *options: CliRunner().invoke(app, [str(option) for option in ("--data", DATA, *options)])


def test_one_test_set_serves_every_seed_and_number_of_labels(bench: ModuleType, structures: Structures) -> None:
    divisions = {(labels, seed): bench.divide(structures, labels, seed) for labels in (25, 100) for seed in (0, 1)}
    test = divisions[25, 0][0]
    assert len(test) == N_TEST and np.isfinite(structures.energies[test]).all()
    for (labels, _), (tested, labelled, low) in divisions.items():
        np.testing.assert_array_equal(tested, test)
        assert len(labelled) == labels and np.isfinite(structures.energies[labelled]).all()
        together = np.concatenate([tested, labelled, low])
        assert sorted(together.tolist()) == list(range(structures.n_structures)), "each structure has one place"
    assert set(divisions[25, 0][1]) != set(divisions[25, 1][1]), "the seed draws the labels"


def test_0_is_every_label_beside_the_test_set(bench: ModuleType, structures: Structures) -> None:
    both = np.isfinite(structures.energies).all(axis=1)
    test, labelled, low = bench.divide(structures, 0, 0)
    assert len(labelled) == bench.pool_size(structures) == both.sum() - N_TEST > 0
    assert sorted([*test, *labelled]) == np.flatnonzero(both).tolist()
    assert np.isfinite(structures.energies[low, 0]).all() and np.isnan(structures.energies[low, 1]).all()
    assert bench.pool_size(structures.take(test[:5])) == 0


def test_databases_hide_the_high_level_of_the_others_alone(
    bench: ModuleType, structures: Structures, tmp_path: Path
) -> None:
    test, labelled, low = bench.divide(structures, 25, 0)
    learn = np.concatenate([labelled, low])
    bench.write(tmp_path, structures, learn, test, hidden=low)
    found = read_databases(find_inputs([str(tmp_path / "*.db")]))
    there = {positions_of(found, m): m for m in range(found.n_structures)}
    index = [there[positions_of(structures, m)] for m in range(structures.n_structures)]
    np.testing.assert_array_equal(found.energies[index, 0], structures.energies[:, 0])
    kept = np.isfinite(found.energies[index, 1])
    assert np.flatnonzero(kept).tolist() == sorted([*test, *labelled])
    np.testing.assert_array_equal(found.energies[index, 1][kept], structures.energies[kept, 1])
    hidden_atoms = np.repeat(~np.isfinite(found.energies[:, 1]), found.sizes)
    assert np.isnan(found.forces[hidden_atoms, 1]).all()
    lines = dict(line.split() for line in (tmp_path / "split.txt").read_text().splitlines())
    assert {found.ids[index[m]] for m in test} == {name for name, part in lines.items() if part == "-1"}
    assert {found.ids[index[m]] for m in learn} == {name for name, part in lines.items() if part == "2"}


def positions_of(structures: Structures, m: int) -> bytes:
    return structures.take([m]).positions.tobytes()


def test_each_mode_runs_and_is_tested_on_the_high_level(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made, train = [], bench.fit

    def recorded(config: Any, reporter: Any) -> Any:
        result = train(config, reporter)
        made.append((config, result))
        return result

    monkeypatch.setattr(bench, "fit", recorded)
    for mode in bench.MODES:
        job = bench.Job(25, mode, 1)
        row = bench.run(job, DATA, steps=100, compilation="off")
        config, result = made[-1]
        assert (row["labels"], row["mode"], row["seed"]) == (25, mode, 1)
        assert 0 < row["mae"] <= row["rmse"] < np.inf
        assert row["mae"] == result.errors["test"]["energy_mae"]
        assert result.predictions["test"].energies.shape[1] == N_TEST
        assert np.isfinite(result.predictions["test"].energies).all()
        assert config.data.fidelity == 1
    counts = [sum(result.predictions[part].energies.shape[1] for part in ("train", "valid")) for _, result in made]
    assert counts[:2] == [25, 25] and counts[2] > 1000, "single and delta see the labels alone"
    assert [result.predictions["test"].energies.shape[2] for _, result in made] == [1, 1, 2]
    assert [config.training.epochs for config, _ in made] == [100, 100, 1], "as many steps, whatever the structures"


ROWS = [
    {"labels": labels, "mode": mode, "seed": seed, "mae": mae + seed, "rmse": 2 * mae}
    for labels, errors in {25: (9.0, 5.0, 6.0), 0: (3.0, 1.0, 2.0)}.items()
    for mode, mae in zip(("single", "delta", "multi"), errors, strict=True)
    for seed in range(3)
]


def test_table_has_mean_and_range_and_says_how_many_all_are(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.print_table(ROWS, [25, 0], 321)
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "25 10.00 (9.00 to 11.00) 6.00 (5.00 to 7.00) 7.00 (6.00 to 8.00)" in lines
    assert "all (321) 4.00 (3.00 to 5.00) 2.00 (1.00 to 3.00) 3.00 (2.00 to 4.00)" in lines


def test_figure_has_a_line_a_mode(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig

    def kept(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    bench.draw(tmp_path / "figure.png", ROWS, [25, 0], 321)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    lines = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axes.containers}
    assert lines == {
        "single": [[25, 10], [321, 4]],
        "delta": [[25, 6], [321, 2]],
        "multi": [[25, 7], [321, 3]],
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25", "321"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json", "no/figures.json"], "'--json': must be a file in a folder that is there, got no/figures.json"),
        (["--figure", "no/figure.png"], "'--figure': must be a file in a folder that is there, got no/figure.png"),
        (["--labels", "25,5000"], "the structures with both levels beside the 120 that test, or 0 for all of them"),
        (["--labels", "2"], "--labels must be numbers from 3 to"),
        (["--labels", "-25"], "got -25"),
        (["--labels", "many"], "got many"),
        (["--data", "no"], "--data: "),
        (["--seeds", "0"], "seeds"),
        (["--jobs", "0"], "jobs"),
        (["--steps", "50"], "--steps must be at least"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_run(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*options)
    assert done.exit_code == 2 and said in done.output, done.output


def test_the_most_labels_are_those_of_the_pool(
    bench: ModuleType, structures: Structures, command: Callable[..., Result]
) -> None:
    pool = bench.pool_size(structures)
    assert f"from 3 to {pool}," in command("--labels", pool + 1).output
    with pytest.raises(AssertionError, match="a run has begun"):
        raise command("--labels", f"{pool},0").exception  # type: ignore[misc]


class Here:
    """Runs jobs in this process."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    map = staticmethod(map)


def test_json_holds_rows_versions_and_machine(
    bench: ModuleType, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(job: Any, data: Path, steps: int) -> dict[str, Any]:
        assert (data, steps) == (DATA, 700)
        return {**job._asdict(), "mae": 1.0 + job.seed, "rmse": 2.0}

    monkeypatch.setattr(bench, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(bench, "run", made_up)
    file, figure = tmp_path / "figures.json", tmp_path / "figure.png"
    options = ["--labels", "25,0", "--seeds", 2, "--steps", 700, "--jobs", 3, "--json", file, "--figure", figure]
    done = command(*options)
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    assert [*report] == ["command", *machine(), "threads", "jobs", "rows"]
    assert (report["threads"], report["jobs"]) == (1, 3)
    assert "--labels 25,0 --seeds 2 --steps 700 --json figures.json" in report["command"]
    assert len(report["rows"]) == 2 * 3 * 2 and figure.is_file()
