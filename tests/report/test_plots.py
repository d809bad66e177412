from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread

from pykinml_func.report.plots import draw_learning_curve, draw_parity, learning_curve, parity_figure, thin
from pykinml_func.training.reporter import Predictions
from pykinml_func.units import KCAL_PER_MOL


def history_of(epochs: int, forces: bool) -> list[dict[str, float]]:
    kinds = ("energy", "force") if forces else ("energy",)
    names = [
        f"{part}_{kind}_{name}" for part in ("train", "valid") for kind in kinds for name in ("mae", "rmse", "max")
    ]
    return [
        {"epoch": e, "learning_rate": 1e-3 if e < 3 else 5e-4, "seconds": 0.5}
        | {name: (k + 1) / e for k, name in enumerate(names)}
        for e in range(1, epochs + 1)
    ]


def predictions_of(counts: dict[str, int], forces: bool, seed: int = 0, levels: int = 1) -> dict[str, Predictions]:
    generator = np.random.default_rng(seed)
    return {
        part: Predictions(
            generator.normal(size=(2, m, levels)), generator.normal(size=(2, 4 * m, levels, 3)) if forces else None
        )
        for part, m in counts.items()
    }


def draw(figure: Figure) -> None:
    figure.savefig(Path("/dev/null"), format="png")


@pytest.mark.parametrize("forces", [False, True])
def test_learning_curve_shows_every_error_against_its_epoch(forces: bool) -> None:
    history = history_of(5, forces)
    *panels, rates = draw_learning_curve(history).axes
    assert len(panels) == 1 + forces
    for axes, kind, unit in zip(panels, ("energy", "force"), ("[kcal/mol]", "[kcal/mol/Å]"), strict=False):
        curves = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
        for part, name in (("train", "train"), ("valid", "validation")):
            for error in ("mae", "rmse"):
                expected = [record[f"{part}_{kind}_{error}"] for record in history]
                np.testing.assert_array_equal(curves[f"{name} {error.upper()}"], expected)
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3, 4, 5])
        assert axes.get_yscale() == "log"
        assert axes.get_ylabel() == f"{kind} error\n{unit}"
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), [1e-3, 1e-3, 5e-4, 5e-4, 5e-4])
    assert rates.get_xlabel() == "epoch"
    assert [label.get_text() for label in rates.get_yticklabels()] == ["0.001", "0.0005"]


def test_learning_curve_marks_the_epoch_that_was_kept() -> None:
    history = history_of(6, forces=False)
    history[3]["valid_energy_rmse"] = 1e-3
    figure = draw_learning_curve(history)
    assert figure.axes[0].lines[-1].get_label() == "kept: epoch 4"
    assert set(figure.axes[0].lines[-1].get_xdata()) == {4}
    assert "kept: epoch 4" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("error", [1.0, 0.0])
def test_one_epoch_can_be_drawn_even_without_any_error(error: float) -> None:
    history = [dict.fromkeys(history_of(1, forces=True)[0], error) | {"epoch": 1, "learning_rate": 1e-3}]
    figure = draw_learning_curve(history)
    draw(figure)
    assert all(line.get_marker() == "o" for line in figure.axes[0].lines[:4])
    low, high = figure.axes[-1].get_xlim()
    assert [tick for tick in figure.axes[-1].get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("forces", [False, True])
def test_parity_shows_reference_against_prediction_in_kcal_per_mol(forces: bool) -> None:
    predictions = predictions_of({"train": 30, "valid": 5, "test": 7}, forces)
    panels = draw_parity(predictions).axes
    assert len(panels) == 1 + forces
    for axes, field, unit in zip(panels, ("energies", "forces"), ("kcal/mol", "kcal/mol/Å"), strict=False):
        dots = [item for item in axes.collections if isinstance(item, PathCollection)]
        assert len({tuple(item.get_facecolor()[0]) for item in dots}) == 3
        for item, (part, found) in zip(dots, predictions.items(), strict=True):
            pairs = KCAL_PER_MOL * getattr(found, field).reshape(2, -1)
            np.testing.assert_allclose(item.get_offsets(), pairs.T)
            mae = f"{np.abs(pairs[0] - pairs[1]).mean():.3g}"
            name = {"valid": "validation"}.get(part, part)
            assert item.get_label() == f"{name}: MAE {mae} {unit}"
        assert axes.get_xlabel().startswith("reference") and axes.get_xlabel().endswith(f"[{unit}]")
        assert axes.get_ylabel().startswith("predicted") and axes.get_ylabel().endswith(f"[{unit}]")
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), axes.lines[0].get_ydata())
        assert axes.get_xlim() == axes.get_ylim() == tuple(axes.lines[0].get_xdata())


def test_parity_is_of_the_labels_of_the_highest_level() -> None:
    predictions = predictions_of({"train": 6, "valid": 3, "test": 2}, forces=True, levels=2)
    train, test = predictions["train"], predictions["test"]
    assert train.forces is not None
    train.energies[0, [1, 4], 1] = train.forces[0, :4, 1] = np.nan
    test.energies[0, :, 1] = np.nan  # no label of the highest level in a part: it has forces alone
    energies, forces = draw_parity(predictions).axes
    dots = [item for item in energies.collections if isinstance(item, PathCollection)]
    assert [item.get_label().split(":")[0] for item in dots] == ["train", "validation"]
    expected = KCAL_PER_MOL * train.energies[:, [0, 2, 3, 5], 1]
    np.testing.assert_allclose(dots[0].get_offsets(), expected.T)
    components = [item for item in forces.collections if isinstance(item, PathCollection)]
    assert [len(item.get_offsets()) for item in components] == [3 * 20, 3 * 12, 3 * 8]
    np.testing.assert_allclose(components[0].get_offsets().T, KCAL_PER_MOL * train.forces[:, 4:, 1].reshape(2, -1))


def test_parity_leaves_out_absent_parts_and_bears_a_single_structure() -> None:
    figure = draw_parity({"train": Predictions(np.zeros((2, 1, 1)), None)})
    draw(figure)
    assert [item.get_label() for item in figure.axes[0].collections] == ["train: MAE 0 kcal/mol"]


def test_thinning_keeps_pairs_and_the_mae_is_of_all() -> None:
    pairs = np.stack([np.arange(50_000.0), np.arange(50_000.0) + 3])
    shown = thin(pairs, 20_000)
    assert shown.shape == (2, 20_000)
    assert len(np.unique(shown[0])) == 20_000
    np.testing.assert_array_equal(shown[1] - shown[0], 3)
    np.testing.assert_array_equal(shown, thin(pairs, 20_000))
    assert thin(pairs[:, :10], 20_000) is not None and thin(pairs[:, :10], 20_000).shape == (2, 10)

    errors = np.zeros((2, 10_000, 1, 3))
    errors[1, 0] = 1.0, 0.0, 0.0
    (_, axes) = draw_parity({"test": Predictions(np.zeros((2, 2, 1)), errors)}).axes
    assert len(axes.collections[0].get_offsets()) == 20_000
    assert axes.collections[0].get_label() == f"test: MAE {KCAL_PER_MOL / 30_000:.3g} kcal/mol/Å"


def test_files_are_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    learning_curve(tmp_path / "learning_curve.png", history_of(4, forces=True))
    parity_figure(tmp_path / "parity.png", predictions_of({"train": 30, "valid": 5}, forces=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_curve.png", "parity.png"]
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 500
        assert len(np.unique(pixels[..., 0])) > 50


def test_figures_touch_no_global_state() -> None:
    before = dict(rcParams)
    for figure in (draw_learning_curve(history_of(3, True)), draw_parity(predictions_of({"train": 3}, True))):
        assert type(figure.canvas) is FigureCanvasAgg
        assert figure.canvas.manager is None
    assert dict(rcParams) == before
