"""What a run's report says, as tables, lines and (label, text) facts; pure. Errors are in kcal/mol and kcal/mol/Å."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from pykinml_func.config import TrainConfig
from pykinml_func.config.names import shown
from pykinml_func.data.formats.rows import some
from pykinml_func.data.groups import structure_groups
from pykinml_func.data.labels import has_forces
from pykinml_func.potential.ensemble import as_members, member_of
from pykinml_func.training.metrics import best_epochs, level_prefixes
from pykinml_func.training.reporter import RunResult, Setup
from pykinml_func.types import Networks, Structures

PART_NAMES = {"train": "train", "valid": "validation", "test": "test"}
"""The parts of the split in their order, as people read them."""


_PLAIN_LINES = 15
"""Lines that the epochs of one run make where the output is no terminal, besides the first epoch's."""


def label_counts(structures: Structures) -> list[tuple[int, int, int]]:
    """(level, structures with an energy, structures with forces on every atom) of each fidelity level."""
    with_energies = np.isfinite(structures.energies).sum(axis=0)
    with_forces = has_forces(structures).sum(axis=0)
    counts = zip(structures.levels, with_energies, with_forces, strict=True)
    return [(int(level), int(energies), int(forces)) for level, energies, forces in counts]


def layer_sizes(networks: Networks) -> list[int]:
    """Parameters of one element's network, layer by layer."""
    weights = [weight[0].numel() for weight in networks.weights]
    biases = [bias[0].numel() for bias in networks.biases] or [0] * len(weights)
    return [weight + bias for weight, bias in zip(weights, biases, strict=True)]


def networks_table(setup: Setup) -> Table:
    """The layers of each element's network, in an ensemble one member's: shape, activation, bias, number of
    parameters.
    """
    model, params = setup.config.model, member_of(as_members(setup.params), 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for header in ("element", "layer", "in -> out", "activation", "bias", "parameters"):
        table.add_column(header, overflow="fold")
    table.columns[2].justify = table.columns[5].justify = "right"
    bias = "yes" if model.biases else "no"
    for level, networks in zip(model.fidelities, params.networks, strict=True):
        sizes = layer_sizes(networks)
        for element in model.aev.elements:
            name = element if model.n_levels == 1 else f"{element}, level {level}"
            for k, (weight, size) in enumerate(zip(networks.weights, sizes, strict=True)):
                shape = f"{weight.shape[2]} -> {weight.shape[1]}"
                table.add_row("" if k else name, str(k + 1), shape, model.activations[k], bias, str(size))
            table.add_row("", "all", "", "", "", str(sum(sizes)), end_section=True)
    total = sum(sum(layer_sizes(networks)) for networks in params.networks) * len(model.aev.elements)
    table.add_row(f"all {len(model.aev.elements) * model.n_levels}", "", "", "", "", str(total))
    return table


def errors_table(result: RunResult, fidelities: Sequence[int]) -> Table:
    """MAE, RMSE and largest error of each part of the split, the highest level first: energies in kcal/mol, forces in
    kcal/mol/Å. fidelities: (L,).
    """
    forces = any("force_mae" in errors for errors in result.errors.values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column(Text("\npart"), overflow="fold")
    table.add_column(Text("\nstructures"), overflow="fold", justify="right")
    kinds = (("energy", "kcal/mol"), ("force", "kcal/mol/Å"))[: 2 if forces else 1]
    for kind, unit in kinds:
        for above, below in ((kind, "MAE"), (unit, "RMSE"), ("", "max")):
            table.add_column(Text(f"{above}\n{below}"), overflow="fold", justify="right", min_width=8)
    prefixes = level_prefixes(fidelities)
    for column in reversed(range(len(fidelities))):
        if len(fidelities) > 1:
            table.add_row(f"level {fidelities[column]}")
        for part in _parts(result.errors):
            errors = result.errors[part]
            values = [
                errors[f"{prefixes[column]}{kind}_{name}"] for kind, _ in kinds for name in ("mae", "rmse", "max")
            ]
            table.add_row(PART_NAMES[part], str(result.labelled[part][column]), *map(_number, values))
    return table


def is_milestone(epoch: int, epochs: int) -> bool:
    """Whether a plain line is due after `epoch` (from 1): the first, the last, and equal parts of the run between."""
    return epoch == 1 or epoch * _PLAIN_LINES // epochs > (epoch - 1) * _PLAIN_LINES // epochs


def split_facts(setup: Setup) -> list[tuple[str, str]]:
    """Structures of each part of the split, and its seed."""
    split, data = setup.data.split, setup.config.data
    counts = {part: len(members) for part, members in split._asdict().items()}
    left_out = setup.data.left_out
    unused = setup.data.labels.n_structures - sum(counts.values()) - left_out
    text = ", ".join(f"{count} {PART_NAMES[part]}" for part, count in counts.items()) + " structures"
    text += f", {unused} unused" if unused else ""
    text += f", {left_out} left out for want of labels" if left_out else ""
    how = "split files and seed" if data.split_files else "seed"
    seed = setup.config.training.seeds[0]
    return [("split", f"{text} ({how} {seed})"), *_group_facts(setup), *_label_facts(setup)]


def _group_facts(setup: Setup) -> list[tuple[str, str]]:
    """How many groups each part of the split has, and which are kept out of training, where structures are grouped."""
    split, split_by = setup.data.split, setup.config.data.split_by
    if split_by is None:
        return []
    of_parts = [np.unique(structure_groups(split_by, setup.data.labels, part)).tolist() for part in split]
    counts = [f"{len(groups)} {PART_NAMES[part]}" for part, groups in zip(split._fields, of_parts, strict=True)]
    held_out = [f"{count} ({some(groups)})" for count, groups in zip(counts[1:], of_parts[1:], strict=True) if groups]
    return [("groups", f"by {split_by}: {', '.join([counts[0], *held_out])}")]


def _label_facts(setup: Setup) -> list[tuple[str, str]]:
    """What is trained to, where it is not one level's energies."""
    model, labels, split = setup.config.model, setup.data.labels, setup.data.split
    if model.baseline is not None:
        return [("delta", f"level {model.fidelities[0]} less level {model.baseline}")]
    if model.n_levels == 1:
        return []
    known = np.isfinite(labels.energies)
    counts = [", ".join(str(int(known[part, column].sum())) for part in split) for column in range(model.n_levels)]
    shown = "; ".join(f"level {level}: {text}" for level, text in zip(model.fidelities, counts, strict=True))
    return [("levels", f"energies to train, validate and test on: {shown}")]


def self_energy_facts(setup: Setup) -> list[tuple[str, str]]:
    """Single-atom energies in eV; a sentence where the compositions do not determine them."""
    model, fit, elements = setup.config.model, setup.data.self_energies, setup.config.model.aev.elements
    if setup.data.refitted and not setup.config.data.fit_self_energies:
        return [("SAEs", "not fitted: 0 eV for every element")]
    facts = []
    for level, energies in zip(model.fidelities, fit.self_energies.tolist(), strict=True):
        values = ", ".join(f"{element} {value:.6f} eV" for element, value in zip(elements, energies, strict=True))
        origin = "" if setup.data.refitted else "of the model that training starts from: "
        facts.append(("SAEs", f"{origin}{values}" if model.n_levels == 1 else f"{origin}level {level}: {values}"))
    if fit.rank < len(elements):
        sentence = (
            f"The compositions do not determine the single-atom energies ({fit.rank} independent for {len(elements)} "
            "elements): the fit of least norm is used."
        )
        facts.append(("", sentence))
    return facts


def training_facts(setup: Setup) -> list[tuple[str, str]]:
    """Force path, precision, compilation, and the length of the run."""
    training = setup.config.training
    forces = "not trained"
    if training.forces:
        how = {"jacobian": "cached AEV Jacobians", "positions": "positions, AEVs recomputed in each step"}
        weight = "weights are learned" if training.learn_loss_weights else f"weight {training.force_weight:g}"
        if training.force_weight_end is not None:
            weight += f" to {training.force_weight_end:g} in the last epoch"
        forces = f"from {how[training.force_path]}; {weight}"
    steps = "recorded as lists of operations, each shape of batches once it has come often; not compiled"
    if setup.compiled:
        steps = "recorded and compiled by torch.compile, each shape of batches when it first comes"
    start = [] if training.start_from is None else [("starts from", str(training.start_from))]
    average = [("average", f"running mean of the networks, decay {training.ema:g}: validated and kept")]
    return [
        *start,
        *_recipe_facts(training),
        ("forces", forces),
        ("precision", f"{training.precision} on {training.device}"),
        *_ensemble_facts(training),
        *_rank_facts(setup),
        ("steps", steps),
        ("optimizer", f"{training.optimizer}, {training.schedule} schedule, learning rate {training.learning_rate:g}"),
        *(average if training.ema else []),
        ("epochs", f"{training.epochs}, batches of {training.batch_size}"),
    ]


_MEMBER_DATA = {
    "all": "all structures",
    "shared": "all structures, in the same batches",
    "bootstrap": "as many structures, drawn with replacement",
    "folds": "all structures but a fold",
}


def _ensemble_facts(training: TrainConfig) -> list[tuple[str, str]]:
    """How the members differ."""
    if training.ensemble == 1:
        return []
    seeds = f"{training.member_seeds[0]} to {training.member_seeds[-1]}"
    data = _MEMBER_DATA[training.ensemble_data]
    return [("ensemble", f"{training.ensemble} members of seeds {seeds}, each on {data}")]


def _rank_facts(setup: Setup) -> list[tuple[str, str]]:
    """How several ranks share the work."""
    if setup.ranks == 1:
        return []
    how = "parameters and optimizer cut among them" if setup.config.training.fsdp else "each with all parameters"
    return [("ranks", f"{setup.ranks}, each computing its share of every batch, {how}")]


def _recipe_facts(training: TrainConfig) -> list[tuple[str, str]]:
    """The recipe, where it is not the standard one, and the settings that were given in place of its own."""
    if training.recipe == "standard":
        return []
    own = [f"{name} {shown(getattr(training, name))}" for name in training.departures()]
    return [("recipe", training.recipe + (f", with your {', '.join(own)}" if own else ""))]


def result_facts(result: RunResult, epochs: int, fidelities: Sequence[int], compiled: bool) -> list[tuple[str, str]]:
    """Epochs done of `epochs`, time, the epoch whose model was kept, shapes that were recorded, and `compiled` or not.
    fidelities: (L,).
    """
    done = len(result.history)
    best = sorted(set(best_epochs(result.history)))
    kept = f"epoch {best[0]}" if len(best) == 1 else f"each member's epoch, {best[0]} to {best[-1]}"
    level = f" of level {fidelities[-1]}" if len(fidelities) > 1 else ""
    seconds = sum(record["seconds"] for record in result.history)
    facts = [
        ("epochs", f"{done} of {max(epochs, done)} in {seconds_text(seconds)}"),
        ("kept", f"{kept}, of the least validation RMSE of the energies{level}"),
    ]
    how = "recorded and compiled" if compiled else "recorded"
    return facts + ([("steps", f"{how} for {result.shapes} shapes of batches")] if result.shapes else [])


def _parts(found: Iterable[str]) -> list[str]:
    """Those of train, valid and test that are there, in this order."""
    there = set(found)
    return [part for part in PART_NAMES if part in there]


def progress_line(record: dict[str, float]) -> str:
    """Errors of an epoch, for the line below the bar."""
    line = f"MAE train/valid: energy {_pair(record, 'energy')} kcal/mol"
    return f"{line}, force {_pair(record, 'force')} kcal/mol/Å" if "train_force_mae" in record else line


def _pair(record: dict[str, float], kind: str) -> str:
    return "/".join(_number(record[f"{part}_{kind}_mae"]) for part in ("train", "valid"))


_COLUMN: Callable[[str], str] = "{:>11}".format


def plain_header(forces: bool) -> list[str]:
    """Two lines above those of `plain_line`."""
    kinds = ["energy MAE, kcal/mol", "force MAE, kcal/mol/Å"][: 2 if forces else 1]
    first = "".join([_COLUMN(""), *(f"{kind:>22}" for kind in kinds), _COLUMN("learning"), _COLUMN("time")])
    second = ["epoch", *["train", "validation"] * len(kinds), "rate", "left"]
    return ["", first, "".join(map(_COLUMN, second))]


def plain_line(record: dict[str, float], epochs: int, left: float) -> str:
    """An epoch in one line. left: s, until the run is done."""
    kinds = [kind for kind in ("energy", "force") if f"train_{kind}_mae" in record]
    errors = [_number(record[f"{part}_{kind}_mae"]) for kind in kinds for part in ("train", "valid")]
    cells = [f"{record['epoch']:.0f}/{epochs}", *errors, f"{record['learning_rate']:.3g}", clock(left)]
    return "".join(map(_COLUMN, cells))


def _number(value: float) -> str:
    """Three decimals, fewer where they say nothing."""
    return f"{value:.{3 if abs(value) < 100 else 1 if abs(value) < 10_000 else 0}f}"


def seconds_text(value: float) -> str:
    """A time that was measured."""
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s" if value < 100 else clock(value)


def clock(value: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(value)))
