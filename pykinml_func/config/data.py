"""The config of data: files, fidelity levels, split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pykinml_func.config.aev import Frozen
from pykinml_func.errors import ContradictionError


class DataConfig(Frozen):
    """Which structures are read, and how they are divided."""

    input: tuple[str, ...] = Field(
        (),
        description="files of structures: PyKinML databases or HDF5, ANI HDF5, or any format of ASE; globs allowed",
    )
    input_type: Literal["auto", "sqlite", "aev", "pca", "ani", "ase"] = Field(
        "auto",
        description="format of the input: sqlite, aev or pca (PyKinML's), ani (ANI's HDF5), ase (any of ASE's); auto: "
        "each file by its content",
    )
    fidelity: int = Field(1, ge=0, description="fidelity level to train to")
    low_fidelity: tuple[int, ...] = Field(
        (), description="with delta the level that is subtracted, with multi_fidelity the levels below, lowest first"
    )
    delta: bool = Field(False, description="train to the difference of fidelity and low_fidelity")
    multi_fidelity: bool = Field(
        False, description="train to all levels of low_fidelity and fidelity, each network fed by the one below"
    )
    skip_incomplete: bool = Field(
        False, description="leave structures without the energies or forces that are needed out, and count them"
    )
    names: tuple[str, ...] = Field(
        (), description="keep structures whose name matches one of these SQL LIKE patterns; default: all"
    )
    temperature: float | None = Field(None, description="keep structures sampled at this temperature [K]; default: all")
    split_files: tuple[str, ...] = Field(
        (),
        description="files of `DATABASE/xyz_id 2|-1` lines: 2 trains or validates, -1 tests; default: a random split",
    )
    split: tuple[float, ...] = Field(
        (0.8, 0.1, 0.1),
        description="train, validation, test: counts, or fractions that sum to at most 1; with split files, counts "
        "of train and validation within them (test 0: all of the files' test structures)",
    )
    split_by: str | None = Field(
        None,
        description="keep the structures of a group in one part of the split: name, name:REGEX (of a name what REGEX "
        "finds, or its parts in parentheses), id:N (blocks of N numbers of a file) or formula; default: each by itself",
    )
    fit_self_energies: bool = Field(True, description="fit single-atom energies and subtract them")
    prepared: Path = Field(Path("prepared"), description="directory that holds the prepared sets (AEVs on disk)")
    pre_saved: bool = Field(False, description="train from the one set in prepared alone, without its input")
    aev_backend: Literal["native", "aevmod"] = Field("native", description="native (torch) or aevmod")
    workers: int = Field(
        0, ge=0, description="processes that read the input, where there is enough of it; 0: one a core"
    )

    @property
    def levels(self) -> tuple[int, ...]:
        """The fidelity levels whose labels are needed, lowest first."""
        return (*self.low_fidelity, self.fidelity)

    @property
    def fidelities(self) -> tuple[int, ...]:
        """The levels that are predicted, lowest first."""
        return self.levels if self.multi_fidelity else (self.fidelity,)

    @property
    def baseline(self) -> int | None:
        """The level that is subtracted from the labels, in delta learning."""
        return self.low_fidelity[0] if self.delta else None

    @field_validator("low_fidelity", mode="before")
    @classmethod
    def _one_level(cls, value: Any) -> Any:
        """PyKinML's way to give one level."""
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("split_by")
    @classmethod
    def _known_groups(cls, value: str | None) -> str | None:
        if value is not None:
            check_split_by(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_split(self.split, bool(self.split_files))
        self._check_levels()
        if self.pre_saved and self.input:
            raise ContradictionError(
                "pre_saved and input contradict each other: pre_saved reads the prepared set alone; leave one of them "
                "out",
                either=("pre_saved", "input"),
            )
        return self

    def _check_levels(self) -> None:
        shown = ", ".join(map(str, self.low_fidelity)) or "none"
        if self.delta and self.multi_fidelity:
            raise ContradictionError(
                "delta and multi_fidelity contradict each other; leave one of them out",
                either=("delta", "multi_fidelity"),
            )
        if self.delta and len(self.low_fidelity) != 1:
            raise ValueError(f"delta needs one level in low_fidelity, to be subtracted, got {shown}; e.g. 0")
        if self.multi_fidelity and not self.low_fidelity:
            raise ValueError("multi_fidelity needs the levels below in low_fidelity, got none; e.g. 0")
        if self.low_fidelity and not (self.delta or self.multi_fidelity):
            raise ContradictionError(
                f"low_fidelity needs delta or multi_fidelity, got {shown} with neither; add one, or leave it out",
                either=("low_fidelity",),
                given=("delta", "multi_fidelity"),
            )
        if len(set(self.levels)) != len(self.levels) or min(self.levels) < 0:
            raise ValueError(
                f"low_fidelity and fidelity must be different levels of 0 or more, got {shown} and {self.fidelity}"
            )


def check_split(split: tuple[float, ...], from_files: bool) -> None:
    """Raises ValueError unless `split` is three counts or fractions as DataConfig.split says."""
    shown = ", ".join(f"{v:g}" for v in split)
    if len(split) not in (2, 3) or any(v < 0 for v in split):
        raise ValueError(f"split must be two or three numbers of 0 or more (train, validation[, test]), got {shown}")
    whole = all(float(v).is_integer() for v in split)
    if not whole and (sum(split) > 1 + 1e-9 or max(split) > 1):
        raise ValueError(f"split fractions must sum to at most 1, got {shown}; give counts instead")
    if split[0] == 0:
        raise ValueError(f"split must leave something to train on, got {shown}")
    if from_files and not whole:
        raise ValueError(
            f"split must be counts when split_files is given, got {shown}; give those that train and validate of the "
            "structures marked 2, e.g. 2000, 48, 0"
        )


def check_split_by(split_by: str) -> None:
    """Raises ValueError unless `split_by` is one of the ways to group that DataConfig.split_by names."""
    kind, _, detail = split_by.partition(":")
    if kind == "name" and detail:
        try:
            re.compile(detail)
        except re.error as error:
            raise ValueError(
                f"split_by name:REGEX needs a regular expression, got {detail!r}: {error}; e.g. name:^(irc_[0-9]+)"
            ) from None
    elif split_by not in ("name", "formula") and not (kind == "id" and detail.isdecimal() and int(detail) > 1):
        raise ValueError(
            f"split_by must be name, name:REGEX, id:N with N of 2 or more, or formula, got {split_by!r}; e.g. name, "
            "where the structures of a trajectory have its name"
        )
