from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils._pytree import tree_leaves

from pykinml_func.config import RunConfig
from pykinml_func.config.build import build_config
from pykinml_func.data.batching import Source
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.prepared import PreparedSet
from pykinml_func.data.splits import Split
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.potential.self_energies import SelfEnergyFit
from pykinml_func.report.console import ConsoleReporter
from pykinml_func.report.sections import errors_table, is_milestone, label_counts, result_facts
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import Predictions, RunResult, Setup
from pykinml_func.training.setup import RunData
from pykinml_func.types import Structures

MakeStructures = Callable[..., Structures]

SMALL = {"n_radial": 4, "n_angular_radial": 2, "n_angular": 2, "neurons": (5, 3, 1)}
SMALL |= {"activations": ("tanh", "gaussian", "identity")}
UNDETERMINED = "do not determine the single-atom energies"


def reporter_on(width: int = 80, terminal: bool = False) -> tuple[ConsoleReporter, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, force_interactive=terminal)
    return ConsoleReporter(console), file


def flat(text: str) -> str:
    """Without line breaks, so that a wrapped sentence is found."""
    return re.sub(r"\s+", " ", text)


def setup_of(
    make_structures: MakeStructures,
    rank: int = 2,
    compiled: bool = False,
    left_out: int = 0,
    refitted: bool = True,
    **settings: Any,
) -> Setup:
    """11 structures, of which the last and those left out are in no part of the split."""
    config = build_config({"elements": ("C", "H"), "epochs": 200, **SMALL, **settings})
    derived = {"fidelities": config.data.fidelities, "baseline": config.data.baseline}
    config = config.model_copy(update={"model": config.model.model_copy(update=derived)})
    labels = make_structures(["C2H2"] * 6 + ["CH4"] * 5, levels=config.data.fidelities)
    split = Split(np.arange(6), np.arange(6, 8), np.arange(8, 10 - left_out))
    values = torch.tensor([-1036.25, -13.123456], dtype=torch.float64)
    energies = torch.stack([values + level for level in range(config.model.n_levels)])
    species = np.where(labels.numbers == 6, 0, 1)
    source = Source(species, labels.positions, labels.offsets, 2, labels.energies)
    data = RunData(labels, left_out, split, source, SelfEnergyFit(energies, rank), refitted)
    return Setup(config, data, init_params(config.model, torch.Generator()), compiled)


def ready_text(setup: Setup) -> str:
    reporter, file = reporter_on()
    reporter.ready(setup)
    return file.getvalue()


def record_of(epoch: int, forces: bool = False) -> dict[str, float]:
    kinds = ("energy", "force") if forces else ("energy",)
    errors = {
        f"{part}_{kind}_{name}": 100 * (kind == "force") + 10 * (part == "valid") + number + 1 / epoch
        for part in ("train", "valid")
        for kind in kinds
        for number, name in enumerate(("mae", "rmse", "max"), start=1)
    }
    return {"epoch": epoch, "learning_rate": 5e-4, "seconds": 2.0, **errors}


def result_of(directory: Path, epochs: int = 3, forces: bool = False, shapes: int = 0) -> RunResult:
    directory.mkdir(exist_ok=True)
    history = [record_of(epoch, forces) for epoch in range(1, epochs + 1)]
    counts = {"test": 3, "train": 17, "valid": 5}
    kinds = ("energy", "force") if forces else ("energy",)
    errors = {
        part: {f"{kind}_{name}": count + 0.111 * n for kind in kinds for n, name in enumerate(("mae", "rmse", "max"))}
        for part, count in counts.items()
    }
    if forces:
        errors["valid"]["force_max"] = 12345.6
    predictions = {
        part: Predictions(np.zeros((2, count, 1)), np.zeros((2, count, 1, 3)) if forces else None)
        for part, count in counts.items()
    }
    labelled = {part: [count] for part, count in counts.items()}
    return RunResult(directory, None, history, errors, predictions, labelled, shapes)  # type: ignore[arg-type]


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykinml_func.report.console._draw", lambda _: [])


def prepared_of(structures: Structures, path: Path, reused: bool) -> PreparedSet:
    path.mkdir(parents=True, exist_ok=True)
    aev = build_config({"elements": ("C", "H"), **SMALL}).model.aev
    return PreparedSet(path, structures, aev, "native", "float32", reused)


def test_prepared_tells_what_was_read(make_structures: MakeStructures, tmp_path: Path) -> None:
    structures = make_structures(["C2H2"] * 3 + ["CH4"] * 2, levels=(4,))
    structures.energies[0] = np.nan
    structures.forces[5, 0, 1] = np.nan  # an atom of the second structure
    structures.forces[-1] = np.nan
    reporter, file = reporter_on()
    reporter.prepared(prepared_of(structures, tmp_path / "set", reused=False), 12.3)
    text = file.getvalue()
    for expected in (
        "C2H2 (3), CH4 (2)",
        "5 with 22 atoms",
        "level 4: 4 structures with energies, 3 with forces",
        "C, H",
    ):
        assert expected in text
    assert f"length {2 * 4 + 3 * 2 * 2}, native, float32" in text
    assert "12 s in all" in text
    assert f"made: {tmp_path / 'set'}\n" in text


def test_prepared_tells_whether_aevs_were_computed_or_there(make_structures: MakeStructures, tmp_path: Path) -> None:
    prepared = prepared_of(make_structures(["C2H2"] * 3), tmp_path, reused=True)
    (tmp_path / "aevs.npy").touch()
    reporter, file = reporter_on()
    reporter.featurizing("jacobians", 3)(3)
    reporter.prepared(prepared, 0.05)
    text = file.getvalue()
    assert "AEVs on disk already" in text
    assert re.search(r"AEV Jacobians computed in \S+ s", text)
    assert "0.05 s in all" in text
    assert f"reused: {tmp_path}\n" in text


def test_label_counts_of_several_levels(make_structures: MakeStructures) -> None:
    structures = make_structures(["C2H2", "CH4", "C2H2"], levels=(1, 3))
    structures.energies[2, 1] = np.nan
    structures.forces[:4, 0] = np.nan
    assert label_counts(structures) == [(1, 3, 2), (3, 2, 3)]


def test_ready_tells_split_self_energies_and_networks(make_structures: MakeStructures) -> None:
    setup = setup_of(make_structures, seeds=(7, 1))
    text = flat(ready_text(setup))
    assert "6 train, 2 validation, 2 test structures, 1 unused (seed 7)" in text
    assert "C -1036.250000 eV, H -13.123456 eV" in text
    assert UNDETERMINED not in text
    one = (20 * 5 + 5) + (5 * 3 + 3) + (3 * 1 + 1)
    for row in ("20 -> 5 tanh yes 105", "5 -> 3 gaussian yes 18", "3 -> 1 identity yes 4"):
        assert text.count(row) == 2
    assert text.count(f"all {one} ") == 2
    assert f"all 2 {2 * one}" in text
    assert "not trained" in text and "float64 on cpu" in text
    assert "steps recorded as lists of operations, each shape of batches once it has come often; not compiled" in text


def test_ready_tells_how_many_groups_there_are_and_which_are_held_out(make_structures: MakeStructures) -> None:
    text = flat(ready_text(setup_of(make_structures, split_by="id:3")))
    assert "groups by id:3: 2 train, 1 validation (CH4/1-3), 2 test (CH4/1-3, CH4/4-6)" in text
    assert "groups" not in ready_text(setup_of(make_structures))


def test_parameters_are_those_of_the_tensors_without_biases(make_structures: MakeStructures) -> None:
    setup = setup_of(make_structures, biases=False)
    text = flat(ready_text(setup))
    total = sum(tensor.numel() for tensor in tree_leaves(setup.params.networks))
    assert total == 2 * (100 + 15 + 3)
    assert f"all 2 {total}" in text
    assert "20 -> 5 tanh no 100" in text


def test_undetermined_self_energies_are_told(make_structures: MakeStructures) -> None:
    text = flat(ready_text(setup_of(make_structures, rank=1)))
    assert f"The compositions {UNDETERMINED} (1 independent for 2 elements): the fit of least norm is used." in text
    text = flat(ready_text(setup_of(make_structures, rank=2, fit_self_energies=False)))
    assert "not fitted" in text and UNDETERMINED not in text


LEVELS = {"multi_fidelity": True, "low_fidelity": (0,), "fidelity": 2}


def test_ready_tells_what_each_level_is_trained_to(make_structures: MakeStructures) -> None:
    setup = setup_of(make_structures, **LEVELS)
    setup.data.labels.energies[[1, 2, 6, 9], 1] = np.nan
    setup.data.labels.energies[5, 0] = np.nan
    text = flat(ready_text(setup))
    assert "energies to train, validate and test on: level 0: 5, 2, 2; level 2: 4, 1, 1" in text
    assert "level 0: C -1036.250000 eV, H -13.123456 eV" in text
    assert "level 2: C -1035.250000 eV, H -12.123456 eV" in text


def test_networks_of_every_level_are_tabulated(make_structures: MakeStructures) -> None:
    """A level above the lowest sees one number more: the energy of the level below."""
    text = flat(ready_text(setup_of(make_structures, **LEVELS)))
    for element in "CH":
        assert f"{element}, level 0 1 20 -> 5 tanh yes 105" in text
        assert f"{element}, level 2 1 21 -> 5 tanh yes 110" in text
    assert f"all 4 {2 * (105 + 110 + 2 * 18 + 2 * 4)}" in text


def test_an_ensemble_tells_its_members_and_the_networks_of_one(make_structures: MakeStructures) -> None:
    alone, several = (setup_of(make_structures, ensemble=n, seeds=(0, 3), ensemble_data="all") for n in (1, 4))
    several = several._replace(params=stack_members([several.params] * 4))
    facts = "ensemble 4 members of seeds 3 to 6, each on all structures"
    text = flat(ready_text(several))
    assert facts in text and "ensemble" not in ready_text(alone)
    one = flat(ready_text(alone))
    assert text.partition("element layer")[2] == one.partition("element layer")[2] != ""


def test_the_epochs_that_the_members_keep_are_told() -> None:
    history = [
        record_of(epoch) | {f"member_{k}_valid_energy_rmse": abs(epoch - 2 - k) for k in range(3)}
        for epoch in range(1, 6)
    ]
    result = RunResult(Path("run"), init_params(RunConfig().model, torch.Generator()), history, {}, {}, {}, 0)
    assert ("kept", "each member's epoch, 2 to 4, of the least validation RMSE of the energies") in result_facts(
        result, 5, (1,), False
    )


def test_delta_and_structures_left_out_are_told(make_structures: MakeStructures) -> None:
    setup = setup_of(make_structures, left_out=1, delta=True, low_fidelity=(0,), fidelity=2, skip_incomplete=True)
    text = flat(ready_text(setup))
    assert "level 2 less level 0" in text
    assert "6 train, 2 validation, 1 test structures, 1 unused, 1 left out for want of labels (seed 0)" in text


def test_one_level_says_nothing_of_levels(make_structures: MakeStructures) -> None:
    text = ready_text(setup_of(make_structures))
    assert "level" not in text and "delta" not in text and "left out" not in text


def test_learned_weights_are_told_and_recorded_weights_do_not_disturb(make_structures: MakeStructures) -> None:
    setup = setup_of(make_structures, forces=True, force_path="positions", learn_loss_weights=True)
    reporter, file = reporter_on()
    reporter.ready(setup)
    reporter.epoch({**record_of(200, forces=True), "energy_loss_weight": 2.0, "force_loss_weight": 0.5}, 200)
    text = file.getvalue()
    assert "weights are learned" in flat(text) and "weight 0.3" not in text
    assert text.splitlines()[-1].split() == ["200/200", "1.005", "11.005", "101.0", "111.0", "0.0005", "0:00:00"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "sgd", "schedule": "exponential", "learning_rate": 2e-4}, "sgd, exponential schedule"),
        ({"optimizer": "AdamW", "schedule": "rop", "learning_rate": 2e-4}, "adamw, plateau schedule"),
    ],
)
def test_optimizer_and_schedule_are_told(make_structures: MakeStructures, settings: dict[str, Any], told: str) -> None:
    assert f"{told}, learning rate 0.0002" in flat(ready_text(setup_of(make_structures, **settings)))


def test_the_model_that_training_starts_from_is_told(make_structures: MakeStructures) -> None:
    text = flat(ready_text(setup_of(make_structures, refitted=False, start_from="old/model.safetensors")))
    assert "starts from old/model.safetensors" in text
    assert "of the model that training starts from: C -1036.250000 eV" in text
    text = flat(ready_text(setup_of(make_structures, refitted=False, start_from="m", fit_self_energies=False)))
    assert "not fitted" not in text and "C -1036.250000 eV" in text


@pytest.mark.parametrize("forces", [False, True])
def test_errors_of_several_levels_stand_below_those_of_the_highest(tmp_path: Path, forces: bool) -> None:
    result = result_of(tmp_path, forces=forces)
    for part, errors in result.errors.items():
        errors |= {f"level_0_{name}": value + 20 for name, value in list(errors.items())}
        (count,) = result.labelled[part]
        result.labelled[part] = [count, count - 1]  # one structure lacks the highest level
    file = io.StringIO()
    Console(file=file, width=80).print(errors_table(result, (0, 3)))
    rows = [line.split() for line in file.getvalue().splitlines()[3:]]
    assert [row[:2] for row in rows] == [
        *(["level", "3"], ["train", "16"], ["validation", "4"], ["test", "2"]),
        *(["level", "0"], ["train", "17"], ["validation", "5"], ["test", "3"]),
    ]
    force = ["17.000", "17.111", "17.222"] if forces else []
    assert rows[1][2:] == ["17.000", "17.111", "17.222", *force]
    assert rows[5][2:] == ["37.000", "37.111", "37.222", *(f"{float(value) + 20:.3f}" for value in force)]


@pytest.mark.parametrize(("path", "said"), [("jacobian", "cached AEV Jacobians"), ("positions", "from positions")])
def test_force_path_and_compilation_are_told(make_structures: MakeStructures, path: str, said: str) -> None:
    setup = setup_of(make_structures, compiled=True, forces=True, force_path=path, precision="float32")
    text = flat(ready_text(setup))
    assert said in text and "weight 0.3" in text and "float32 on cpu" in text
    assert "steps recorded and compiled by torch.compile, each shape of batches when it first comes" in text


@pytest.mark.parametrize("epochs", [1, 2, 9, 15, 16, 31, 200, 1003])
def test_plain_lines_are_few_and_spread_over_the_run(epochs: int) -> None:
    due = [epoch for epoch in range(1, epochs + 1) if is_milestone(epoch, epochs)]
    assert due[0] == 1 and due[-1] == epochs
    assert min(epochs, 15) <= len(due) <= 16
    assert max(np.diff(due), default=0) <= epochs / 15 + 1


@pytest.mark.parametrize("forces", [False, True])
def test_epochs_are_plain_lines_where_there_is_no_terminal(make_structures: MakeStructures, forces: bool) -> None:
    reporter, file = reporter_on()
    reporter.ready(setup_of(make_structures, forces=forces, force_path="positions"))
    before = len(file.getvalue())
    for epoch in range(1, 201):
        reporter.epoch(record_of(epoch, forces), 200)
    text = file.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert max(map(len, text.splitlines())) <= 80
    lines = text[before:].splitlines()
    assert 10 <= len(lines) <= 20
    errors = ["1.005", "11.005", *(["101.0", "111.0"] if forces else [])]
    last = [line for line in lines if line.split()[0] == "200/200"]
    assert last == lines[-1:] and last[0].split() == ["200/200", *errors, "0.0005", "0:00:00"]
    assert lines[0].split()[-1] == "0:06:38"  # 199 epochs of 2 s


def test_epochs_move_a_bar_on_a_terminal(make_structures: MakeStructures) -> None:
    reporter, file = reporter_on(terminal=True)
    with reporter:
        reporter.ready(setup_of(make_structures, forces=True, force_path="positions"))
        for epoch in range(1, 201):
            reporter.epoch(record_of(epoch, forces=True), 200)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "epoch 200/200" in text and "learning rate 0.0005, 0:00:00 left" in text
    assert "MAE train/valid: energy 1.005/11.005 kcal/mol, force 101.0/111.0 kcal/mol/Å" in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= 80


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_of_aevs_ends_when_all_are_done(terminal: bool) -> None:
    reporter, file = reporter_on(terminal=terminal)
    advance = reporter.featurizing("aevs", 10)
    advance(4)
    assert bool(reporter.console._live_stack) is terminal
    advance(6)
    assert not reporter.console._live_stack
    assert "AEVs" in file.getvalue()
    assert terminal or file.getvalue() == "Computing AEVs of 10 structures ...\n"


def interrupt(reporter: ConsoleReporter, as_context: bool) -> None:
    if not as_context:
        reporter.featurizing("aevs", 10)(4)
        raise OSError("disk full")
    with reporter:
        reporter.featurizing("aevs", 10)(4)
        raise OSError("disk full")


@pytest.mark.parametrize("as_context", [False, True])
def test_an_exception_leaves_a_usable_terminal(as_context: bool) -> None:
    reporter, file = reporter_on(terminal=True)
    with pytest.raises(OSError, match="disk full"):
        interrupt(reporter, as_context)
    text = file.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).endswith("\n")
    assert as_context is not bool(reporter.console._live_stack)


def test_a_pipe_gets_no_moving_bar_even_when_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not ConsoleReporter().console.is_interactive


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("forces", "compiled"), [(False, True), (True, False)])
def test_finished_tabulates_errors_and_ends_with_the_model(
    make_structures: MakeStructures, tmp_path: Path, forces: bool, compiled: bool
) -> None:
    result = result_of(tmp_path / "run", forces=forces, shapes=4)
    reporter, file = reporter_on()
    reporter.ready(setup_of(make_structures, epochs=3, compiled=compiled))
    before = len(file.getvalue())
    reporter.finished(result)
    lines = file.getvalue()[before:].splitlines()
    unbroken = [line for line in lines if str(tmp_path) not in line]
    assert max(map(len, unbroken)) <= 80
    force = ["17.000", "17.111", "17.222"] if forces else []
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["train"] == ["train", "17", "17.000", "17.111", "17.222", *force]
    assert rows["validation"][:5] == ["validation", "5", "5.000", "5.111", "5.222"]
    assert rows["test"][:5] == ["test", "3", "3.000", "3.111", "3.222"]
    assert ("12346" in file.getvalue()) is forces
    assert ("kcal/mol/Å" in file.getvalue()) is forces
    assert rows["epochs"] == ["epochs", "3", "of", "3", "in", "6", "s"]
    assert rows["kept"][:3] == ["kept", "epoch", "3,"]
    assert " ".join(rows["steps"]) == f"steps recorded {'and compiled ' * compiled}for 4 shapes of batches"
    assert lines[-2].split() == ["run", str(tmp_path / "run")]
    assert lines[-1] == f"MODEL: {tmp_path / 'run' / 'model.safetensors'}"


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_was_cut_short_is_told_so(make_structures: MakeStructures, tmp_path: Path) -> None:
    reporter, file = reporter_on()
    reporter.ready(setup_of(make_structures))
    before = len(file.getvalue())
    reporter.finished(result_of(tmp_path, epochs=3))
    assert "3 of 200 in 6 s" in file.getvalue()
    assert "shapes of batches" not in file.getvalue()[before:]


@pytest.mark.usefixtures("without_figures")
def test_paths_are_whole_on_a_narrow_terminal_and_numbers_lose_no_digit(tmp_path: Path) -> None:
    directory = tmp_path / "a [bold]long :smile: name" / "run-with-a-long-name"
    directory.mkdir(parents=True)
    reporter, file = reporter_on(width=40)
    reporter.finished(result_of(directory, forces=True))
    assert file.getvalue().splitlines()[-1] == f"MODEL: {directory / 'model.safetensors'}"
    assert "…" not in file.getvalue()


def test_the_model_is_told_even_if_the_figures_fail(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    (tmp_path / "parity.png").mkdir()
    reporter, file = reporter_on()
    with pytest.raises(OSError, match=r"parity\.png"):
        reporter.finished(result)
    assert file.getvalue().splitlines()[-1] == f"MODEL: {tmp_path / 'model.safetensors'}"


def tiny_run(make_structures: MakeStructures, folder: Path, formulas: Sequence[str], forces: bool) -> RunConfig:
    for number, formula in enumerate(formulas):
        structures = make_structures([formula] * 10, seed=number)
        write_database(folder / f"{formula}.db", structures, {1: "made up"})
    settings = {"epochs": 2, "forces": forces, "force_path": "jacobian", "compile": "off", "batch_size": 8, **SMALL}
    paths = {"input": (str(folder / "*.db"),), "prepared": folder / "prepared", "output": folder / "run"}
    return build_config(settings | paths)


def test_a_real_run_of_two_levels(make_structures: MakeStructures, tmp_path: Path) -> None:
    structures = make_structures(["CH4"] * 12, levels=(0, 1))
    structures.energies[[1, 5], 1] = np.nan
    write_database(tmp_path / "CH4.db", structures, {0: "made up", 1: "made up"})
    reporter, file = reporter_on()
    settings = {"input": (str(tmp_path / "CH4.db"),), "prepared": tmp_path / "prepared", "output": tmp_path / "run"}
    settings |= {"multi_fidelity": True, "low_fidelity": 0, "epochs": 2, "compile": "off", **SMALL}
    result = fit(build_config({**settings, "split": (6, 3, 3), "forces": True}), reporter)
    text = file.getvalue()
    assert "level 0: 12 structures with energies, 12 with forces" in text
    assert "level 1: 10 structures with energies, 10 with forces" in text
    lines = [line.split() for line in text.splitlines()]
    for level, prefix in (("0", "level_0_"), ("1", "")):
        found = [float(cell) for cell in lines[lines.index(["level", level]) + 1][2:]]
        names = [f"{prefix}{kind}_{error}" for kind in ("energy", "force") for error in ("mae", "rmse", "max")]
        np.testing.assert_allclose(found, [result.errors["train"][name] for name in names], rtol=2e-3, atol=5e-4)
    assert {"learning_curve.png", "parity.png"} <= {path.name for path in result.directory.iterdir()}


@pytest.mark.parametrize(("formulas", "forces"), [(("C2H2",), False), (("C2H2", "CH4"), True)])
def test_a_real_run(make_structures: MakeStructures, tmp_path: Path, formulas: Sequence[str], forces: bool) -> None:
    reporter, file = reporter_on()
    result = fit(tiny_run(make_structures, tmp_path, formulas, forces), reporter)
    text = file.getvalue()
    assert "\x1b" not in text
    count = 10 * len(formulas)
    for formula in formulas:
        assert f"{formula} (10)" in text
    assert (f"Computing AEV Jacobians of {count} structures" in text) is forces
    assert f"{count} structures with energies, {count} with forces" in text
    for element, value in zip("CH", result.params.self_energies[0].tolist(), strict=True):
        assert f"{element} {value:.6f} eV" in text
    assert (UNDETERMINED in flat(text)) is (len(formulas) == 1)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    kinds = ("energy", "force") if forces else ("energy",)
    for part, name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        found = [float(cell) for cell in rows[name][2:]]
        expected = [result.errors[part][f"{kind}_{error}"] for kind in kinds for error in ("mae", "rmse", "max")]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-4)
        mae = np.abs(np.diff(result.predictions[part].energies, axis=0)).mean() * 23.0605
        assert found[0] == pytest.approx(mae, rel=1e-3)
    assert text.splitlines()[-1] == f"MODEL: {tmp_path / 'run' / 'model.safetensors'}"
    assert {"learning_curve.png", "parity.png", "model.safetensors"} <= {p.name for p in (tmp_path / "run").iterdir()}
