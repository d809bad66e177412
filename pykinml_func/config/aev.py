"""The config of atomic environment vectors: cutoffs, grids, and aevmod's rule for them."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from pykinml_func.errors import ContradictionError


class Frozen(BaseModel):
    """Base of the configs: unchangeable, without unknown or infinite settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AEVConfig(Frozen):
    """Atomic environment vectors: cutoffs and grids.

    The grids default to aevmod's rule: shifts at the centres of equal intervals up to the cutoff, Gaussians of
    width 2/3 of an interval, zeta 8, angular sections spread evenly over [0, pi]. Grids that are given
    (`radial_shifts` and so on; for ANI-1x and 2x, say) take the place of the rule and of its counts.
    """

    elements: tuple[str, ...] = Field(
        (), description="element symbols, in the order of the networks; default: those of the data"
    )
    radial_cutoff: PositiveFloat = Field(5.2, description="radial cutoff [Å]")
    angular_cutoff: PositiveFloat = Field(3.8, description="angular cutoff [Å]")
    n_radial: PositiveInt = Field(16, description="radial shells")
    n_angular_radial: PositiveInt = Field(8, description="radial shells of the angular part")
    n_angular: PositiveInt = Field(8, description="angular sections")
    beta: float = Field(0.95, gt=0, le=1, description="scale of cos(theta) in the angular part")
    radial_eta: PositiveFloat = Field(
        None, validate_default=False, description="radial Gaussian exponent [1/Å²]; default: aevmod's rule"
    )  # type: ignore[assignment]
    angular_eta: PositiveFloat = Field(
        None,
        validate_default=False,
        description="exponent of the angular part's Gaussians [1/Å²]; default: aevmod's rule",
    )  # type: ignore[assignment]
    zeta: float = Field(8.0, ge=1, description="exponent of the angular sections")
    radial_shifts: tuple[float, ...] = Field(
        (), description="centres of the radial Gaussians [Å]; default: aevmod's rule"
    )
    angular_shifts: tuple[float, ...] = Field(
        (), description="centres of the angular part's Gaussians [Å]; default: aevmod's rule"
    )
    angular_sections: tuple[float, ...] = Field(
        (), description="angles of the angular sections [rad]; default: aevmod's rule"
    )
    radial_prefactor: PositiveFloat = Field(1.0, description="factor of every radial term")
    angular_prefactor: PositiveFloat = Field(1.0, description="factor of every angular term")

    @model_validator(mode="before")
    @classmethod
    def _fill_grids(cls, values: Any) -> Any:
        """Counts follow given grids; the grids that are missing follow aevmod's rule (its class `aev`)."""
        given = dict(values)
        for count, grid in GRIDS.items():
            if isinstance(given.get(grid), list | tuple) and given[grid]:
                given.setdefault(count, len(given[grid]))
        if not all(_is_number(given.get(name, 1)) for name in ("radial_cutoff", "angular_cutoff")):
            return given
        if not all(_is_number(given.get(count, 1)) and float(given.get(count, 1)).is_integer() for count in GRIDS):
            return given
        for part, count in (("radial", "n_radial"), ("angular", "n_angular_radial")):
            cutoff = float(given.get(f"{part}_cutoff", cls.model_fields[f"{part}_cutoff"].default))
            shells = int(float(given.get(count, cls.model_fields[count].default)))
            if cutoff <= 0 or shells < 1:
                return given
            width = cutoff / shells
            given.setdefault(f"{part}_eta", 1 / (2 / 3 * width) ** 2)
            if not given.get(f"{part}_shifts"):
                given[f"{part}_shifts"] = tuple(width * (k + 0.5) for k in range(shells))
        sections = int(float(given.get("n_angular", cls.model_fields["n_angular"].default)))
        if sections >= 1 and not given.get("angular_sections"):
            given["angular_sections"] = tuple(math.pi * k / max(sections - 1, 1) for k in range(sections))
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.elements)) != len(self.elements):
            raise ValueError(f"elements must differ from each other, got {', '.join(self.elements)}")
        if self.elements:
            from ase.data import chemical_symbols

            unknown = [symbol for symbol in self.elements if symbol not in chemical_symbols[1:]]  # [0] is X, a dummy
            if unknown:
                raise ValueError(f"elements must be chemical symbols, such as C or Cl, got {', '.join(unknown)}")
        for count, grid in GRIDS.items():
            if len(getattr(self, grid)) != getattr(self, count):
                raise ContradictionError(
                    f"{count} must be the length of {grid}, got {getattr(self, count)} and "
                    f"{len(getattr(self, grid))}; leave one of them out",
                    either=(count, grid),
                )
        return self

    def by_rule(self) -> AEVConfig:
        """The same elements, cutoffs, counts and beta with aevmod's grids."""
        return AEVConfig(**{name: value for name, value in self if name not in GRID_FIELDS})

    @property
    def own_grids(self) -> set[str]:
        """The fields of the grids that differ from aevmod's rule."""
        rule = self.by_rule()
        return {name for name in GRID_FIELDS if getattr(self, name) != getattr(rule, name)}

    @property
    def given(self) -> set[str]:
        """The fields that were set, not filled in."""
        filled = {*GRID_FIELDS} - self.own_grids
        return self.model_fields_set - filled - (set() if self.elements else {"elements"})

    @property
    def length(self) -> int:
        """D, the length of one atom's AEV."""
        species = len(self.elements)
        return species * self.n_radial + species * (species + 1) // 2 * self.n_angular_radial * self.n_angular


GRID_FIELDS = (
    "radial_eta",
    "angular_eta",
    "zeta",
    "radial_shifts",
    "angular_shifts",
    "angular_sections",
    "radial_prefactor",
    "angular_prefactor",
)
"""What aevmod's rule fills in."""

GRIDS = {"n_radial": "radial_shifts", "n_angular_radial": "angular_shifts", "n_angular": "angular_sections"}


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
