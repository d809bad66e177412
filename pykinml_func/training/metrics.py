"""Errors as sums that add up over batches, and the means that people read.

# M structures, L fidelity levels, S species, N atoms a species (padded)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pykinml_func.types import Batch, ErrorSums, StepSums
from pykinml_func.units import KCAL_PER_MOL

_DECIDES = "valid_energy_rmse"
"""In an epoch's record: what the best epoch and the learning rate go by."""


def error_sums(errors: Tensor, mask: Tensor) -> ErrorSums:
    """Sums of |error|, error² and count, and the largest |error|, of each level, where `mask` is 1.

    errors, mask: (..., L). Returns sums (L,).
    """
    size = (errors * mask).abs().flatten(0, -2)
    number = mask.flatten(0, -2).sum(dim=0)
    return ErrorSums(
        size.sum(dim=0).double(), (size * size).sum(dim=0).double(), size.amax(dim=0).double(), number.double()
    )


def step_sums(batch: Batch, energies: Tensor, forces: Tensor | None = None) -> StepSums:
    """Sums over a batch's errors. energies: (M,L) eV; forces: (S,N,L,3) eV/Å."""
    energy = error_sums(energies - batch.energies, batch.energy_mask)
    if forces is None or batch.forces is None or batch.component_weights is None:
        return StepSums(energy, None)
    mask = (batch.component_weights > 0).to(forces.dtype).unsqueeze(-1).expand_as(forces)
    errors = forces - batch.forces
    return StepSums(energy, error_sums(errors.movedim(2, -1), mask.movedim(2, -1)))


def add_sums(sums: Iterable[StepSums]) -> StepSums:
    """The sums of several batches as one's."""
    return add_stacked(stack_sums(list(sums)))


def add_stacked(stacked: StepSums) -> StepSums:
    """The sums of batches that lie side by side, (k,L) each, as one's."""
    return StepSums(_add(stacked.energy), None if stacked.force is None else _add(stacked.force))


def _add(sums: ErrorSums) -> ErrorSums:
    absolute, squared, largest, number = sums
    return ErrorSums(absolute.sum(dim=0), squared.sum(dim=0), largest.amax(dim=0), number.sum(dim=0))


def stack_sums(sums: Sequence[StepSums]) -> StepSums:
    """The sums of k batches side by side: (k,L) each."""
    forces = [step.force for step in sums if step.force is not None]
    return StepSums(_stack([step.energy for step in sums]), _stack(forces) if forces else None)


def _stack(sums: Sequence[ErrorSums]) -> ErrorSums:
    return ErrorSums(*(torch.stack(column) for column in zip(*sums, strict=True)))


def unstack_sums(stacked: StepSums) -> list[StepSums]:
    """The inverse of `stack_sums`."""
    return [tree_map_only(Tensor, itemgetter(k), stacked) for k in range(len(stacked.energy.number))]


def level_prefixes(fidelities: Sequence[int]) -> list[str]:
    """What the names of each level's figures begin with: `level_0_`, and nothing for the highest. fidelities: (L,),
    lowest first.
    """
    return [*(f"level_{level}_" for level in fidelities[:-1]), ""]


def member_record(rmses: Sequence[float]) -> dict[str, float]:
    """What a record says of each member of an ensemble: its validation RMSE of the energies, kcal/mol."""
    return {f"member_{place}_{_DECIDES}": rmse for place, rmse in enumerate(rmses)} if len(rmses) > 1 else {}


def member_rmses(record: Mapping[str, float]) -> list[float]:
    """The validation RMSE of the energies of each member, or of the one model, kcal/mol."""
    return [value for name, value in record.items() if name.startswith("member_")] or [record[_DECIDES]]


def best_epochs(history: Sequence[Mapping[str, float]]) -> list[int]:
    """The epoch whose model is kept, of each member: the first of the least validation RMSE of the energies."""
    columns = zip(*map(member_rmses, history), strict=True)
    return [1 + min(range(len(column)), key=column.__getitem__) for column in columns]


def summary(sums: StepSums, fidelities: Sequence[int] = (0,)) -> dict[str, float]:
    """MAE, RMSE and largest error in kcal/mol, and with prefix `force_` in kcal/mol/Å; NaN over no label.

    fidelities: (L,), lowest first. The names begin with the `level_prefixes`.
    """
    found = {}
    kinds = {"energy": sums.energy} | ({} if sums.force is None else {"force": sums.force})
    for kind, errors in kinds.items():
        for column, prefix in enumerate(level_prefixes(fidelities)):
            absolute, squared, largest, number = (field[column].item() for field in errors)
            count = number or float("nan")
            found[f"{prefix}{kind}_mae"] = KCAL_PER_MOL * absolute / count
            found[f"{prefix}{kind}_rmse"] = KCAL_PER_MOL * (squared / count) ** 0.5
            found[f"{prefix}{kind}_max"] = KCAL_PER_MOL * (largest if number else float("nan"))
    return found
