"""The figures of a run, drawn with matplotlib's objects on an Agg canvas: no window, no global state.

# m structures of one part of the split, a atoms of them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator

from pykinml_func.files import write_atomically
from pykinml_func.report.sections import PART_NAMES
from pykinml_func.training.metrics import best_epochs
from pykinml_func.training.reporter import Predictions
from pykinml_func.units import KCAL_PER_MOL

_COLOURS = {"train": "#4477AA", "valid": "#EE7733", "test": "#228833"}
"""Told apart by colour-blind readers too (Paul Tol's schemes)."""
_MOST_POINTS = 20_000
_FEW_POINTS = 5000
"""Below it points are large."""
_MOST_RATES = 4
"""Learning rates that get a tick."""
_FONT = 11
_DPI = 150


def learning_curve(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write `draw_learning_curve` as a PNG, whole or not at all."""
    _write(path, draw_learning_curve(history))


def parity_figure(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write `draw_parity` as a PNG, whole or not at all."""
    _write(path, draw_parity(predictions))


def draw_learning_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Errors of training and validation and the learning rate against the epoch. history: a record an epoch."""
    kinds = {"energy": "energy error\n[kcal/mol]", "force": "force error\n[kcal/mol/Å]"}
    kinds = {kind: label for kind, label in kinds.items() if f"train_{kind}_rmse" in history[0]}
    figure = _figure(7.0, 2.9 * len(kinds) + 1.2)
    ratios = [3.0] * len(kinds) + [1.0]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (kind, label) in zip(panels, kinds.items(), strict=False):
        _draw_errors(axes, history, kind, label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=_FONT - 2, frameon=False, ncols=3, loc="outside upper center")
    _draw_rates(panels[-1], history)
    return figure


def draw_parity(predictions: Mapping[str, Predictions]) -> Figure:
    """Predicted against reference values of the highest level, for each part of the split: energies less self energies,
    and forces.
    """
    parts = {part: predictions[part] for part in PART_NAMES if part in predictions}
    energies = {part: _labelled(found.energies[..., -1]) for part, found in parts.items()}
    forces = {part: _labelled(found.forces[:, :, -1]) for part, found in parts.items() if found.forces is not None}
    energies, forces = ({part: pairs for part, pairs in kind.items() if pairs.size} for kind in (energies, forces))
    figure = _figure(10.5 if forces else 5.4, 5.2)
    panels = figure.subplots(1, 2 if forces else 1, squeeze=False)[0]
    _draw_pairs(panels[0], energies, "energy less self energies", "kcal/mol")
    if forces:
        _draw_pairs(panels[1], forces, "force component", "kcal/mol/Å")
    return figure


def _labelled(pairs: np.ndarray) -> np.ndarray:
    """(2,p) of the references that are there, in kcal/mol or kcal/mol/Å. pairs: (2,...) eV or eV/Å."""
    flat = pairs.reshape(2, -1)
    found: np.ndarray = KCAL_PER_MOL * flat[:, np.isfinite(flat[0])]
    return found


def thin(pairs: np.ndarray, most: int = _MOST_POINTS) -> np.ndarray:
    """At most `most` columns of `pairs` (2,p), drawn at random, the same ones each time."""
    count = pairs.shape[1]
    return pairs if count <= most else pairs[:, np.random.default_rng(0).choice(count, most, replace=False)]


def _draw_errors(axes: Axes, history: Sequence[Mapping[str, float]], kind: str, label: str) -> None:
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(history) == 1 else ""
    for part in ("train", "valid"):
        for name, line in (("rmse", "-"), ("mae", "--")):
            errors = [record[f"{part}_{kind}_{name}"] for record in history]
            curve = f"{PART_NAMES[part]} {name.upper()}"
            filling = _COLOURS[part] if name == "rmse" else "none"
            (drawn,) = axes.plot(epochs, errors, line, color=_COLOURS[part], linewidth=1.4, label=curve)
            drawn.set(marker=marker, markerfacecolor=filling)
    best = sorted(set(best_epochs(history)))
    kept = f"kept: epoch {best[0]}" if len(best) == 1 else f"kept: epochs {best[0]} to {best[-1]}"
    for epoch in best:
        axes.axvline(epoch, color="0.5", linewidth=1, linestyle=":", label=kept if epoch == best[0] else None)
    axes.set_ylabel(label, fontsize=_FONT)
    _style(axes)
    _logarithmic(axes)


def _draw_rates(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    epochs = [record["epoch"] for record in history]
    rates = [record["learning_rate"] for record in history]
    axes.step(epochs, rates, where="mid", color="0.3", linewidth=1.2, marker="o" if len(history) == 1 else "")
    axes.set_ylabel("learning\nrate", fontsize=_FONT)
    axes.set_xlabel("epoch", fontsize=_FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, epochs[-1] + 0.5)
    _style(axes)
    _logarithmic(axes)
    levels = sorted(set(rates), reverse=True)
    ticks = levels[:: -(-len(levels) // _MOST_RATES)]
    axes.set_yticks(ticks, [f"{rate:.3g}" for rate in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_pairs(axes: Axes, pairs: Mapping[str, np.ndarray], quantity: str, unit: str) -> None:
    """Scatter references (row 0) against predictions (row 1) of each part, in `unit`."""
    for order, (part, found) in enumerate(pairs.items()):
        mae = np.abs(found[1] - found[0]).mean()
        label = f"{PART_NAMES[part]}: MAE {mae:.3g} {unit}"
        shown = thin(found)
        size, alpha = (9.0, 0.6) if shown.shape[1] < _FEW_POINTS else (3.0, 0.3)
        dots = axes.scatter(shown[0], shown[1], s=size, color=_COLOURS[part], alpha=alpha, linewidths=0, label=label)
        dots.set(rasterized=True, zorder=2 + order)
    low = min(found.min() for found in pairs.values())
    high = max(found.max() for found in pairs.values())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.2", linewidth=0.8, zorder=1)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(f"reference {quantity} [{unit}]", fontsize=_FONT)
    axes.set_ylabel(f"predicted {quantity} [{unit}]", fontsize=_FONT)
    legend = axes.legend(fontsize=_FONT - 2, frameon=False, loc="upper left")
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set(sizes=[30], alpha=1)
    _style(axes)


def _logarithmic(axes: Axes) -> None:
    """A log scale with plain numbers, if there is a number that it can show."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines[:4]])
    if not (values > 0).any():
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_formatter(_PlainLogFormatter())
    axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2, 0.5)))


class _PlainLogFormatter(LogFormatter):
    """Labels the ticks that a LogFormatter labels, as 0.6 in place of 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def _style(axes: Axes) -> None:
    axes.tick_params(which="both", labelsize=_FONT - 2)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(path: Path, figure: Figure) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=_DPI))
