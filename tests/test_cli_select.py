"""`pykinml select`: a pool of any formats in, extended XYZ or ids out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from cli_calls import Run, flat, run_command

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.inference.selection import select
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import load_ensemble, save_ensemble
from pykinml_func.types import Ensemble, Structures


@pytest.fixture
def pykinml(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make_structures: Callable[..., Structures],
) -> Run:
    """Runs the command in a folder with an ensemble, a model of its first member, and a pool of two files."""
    config = ModelConfig(
        aev=AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2),
        neurons=(5, 1),
        activations=("tanh", "identity"),
    )
    members = [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(3)]
    save_ensemble(tmp_path / "three.safetensors", Ensemble(config, stack_members(members)))
    save_ensemble(tmp_path / "one.safetensors", Ensemble(config, stack_members(members[:1])))
    write_database(tmp_path / "C2H2.db", make_structures(["C2H2"] * 6, seed=3), {1: "made up"})
    frames = [molecule("CH4") for _ in range(4)]
    for seed, atoms in enumerate(frames):
        atoms.positions += np.random.default_rng(seed).normal(0, 0.1, (5, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    ase.io.write(tmp_path / "more methane.extxyz", frames)
    (tmp_path / "other" / ".extxyz").mkdir(parents=True)
    ase.io.write(tmp_path / "other" / "C2H2.extxyz", molecule("C2H2"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run_command, capsys)


POOL = ("C2H2.db", "more methane.extxyz")
IDS = [f"C2H2/{row}" for row in range(1, 7)] + [f"more_methane/{place}" for place in range(1, 5)]


def expected_ids(number: int) -> list[str]:
    return [IDS[place] for place in select(load_ensemble("three.safetensors"), read_structures(POOL), number)]


def test_help_of_select(pykinml: Run) -> None:
    text = flat(pykinml("select", "--help").out)
    for said in ("--number", "-n", "--output", "extxyz", ".txt"):
        assert said in text


def test_prints_ids_in_the_order_of_choice(pykinml: Run) -> None:
    ended = pykinml("select", "three.safetensors", *POOL, "-n", 5)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == expected_ids(5)


def test_writes_ids(pykinml: Run) -> None:
    ended = pykinml("select", "three.safetensors", *POOL, "-n", 5, "-o", "next.txt")
    assert (ended.code, ended.out) == (0, "wrote next.txt: 5 of 10 structures\n")
    assert Path("next.txt").read_text().splitlines() == expected_ids(5)


def test_writes_geometries_to_be_labelled(pykinml: Run) -> None:
    assert pykinml("select", "three.safetensors", *POOL, "-n", 10, "-o", "next.extxyz").code == 0
    pool = dict(zip(IDS, read_structures(POOL), strict=True))
    frames = list(ase.io.iread("next.extxyz", index=":"))
    assert [frame.info["id"] for frame in frames] == expected_ids(10)
    for frame in frames:
        assert frame.calc is None
        assert set(frame.info) == {"id"}
        expected = pool[frame.info["id"]]
        assert frame.get_chemical_symbols() == expected.get_chemical_symbols()
        np.testing.assert_allclose(frame.positions, expected.positions, atol=1e-7)


def test_a_file_counts_once_whatever_its_names_and_their_order(pykinml: Run) -> None:
    ended = pykinml("select", "three.safetensors", "more*", "C2H2.db", "./C2H2.db", "*.db", "-n", 5)
    assert ended.out.splitlines() == expected_ids(5)


def test_copies_are_not_selected_and_that_is_told(pykinml: Run) -> None:
    copies = []
    for seed, atoms in enumerate(read_structures(POOL)[:4]):
        copies.append(atoms[np.random.default_rng(seed).permutation(len(atoms))])
        copies[-1].rotate(40 * seed + 10, (1, 2, 3))
    ase.io.write("again.extxyz", copies)
    ended = pykinml("select", "three.safetensors", *POOL, "again.extxyz", "-n", 12)
    assert (ended.code, ended.err) == (0, "the pool has only 10 distinct structures; 12 were asked for\n")
    of_copies = {f"again/{place}": f"C2H2/{place}" for place in range(1, 5)}
    assert sorted(of_copies.get(name, name) for name in ended.out.splitlines()) == sorted(IDS)
    ended = pykinml("select", "three.safetensors", *POOL, "again.extxyz", "-n", 12, "-o", "next.txt")
    assert ended.out == "wrote next.txt: 10 of 14 structures\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("one.safetensors", "C2H2.db", "-n", 2), "two or more members"),
        (("three.safetensors", "C2H2.db"), "from 1 to 6, the structures of the pool, got 100"),
        (("three.safetensors", "C2H2.db", "-n", 2, "-o", "C2H2.db"), "extended XYZ"),
        (("three.safetensors", POOL[1], "-n", 2, "-o", POOL[1]), "must differ from what is read"),
        (("three.safetensors", "C2H2.db", "-n", 2, "-o", "there/next.txt"), "a directory that is there"),
        (("three.safetensors", "none.xyz", "-n", 2), "no file matches 'none.xyz'"),
        (("three.safetensors", "C2H2.db", "other/C2H2.extxyz", "-n", 2), "must differ in their names"),
        (("three.safetensors", "more*", "-n", 2, "-o", POOL[1]), "must differ from what is read"),
        (("three.safetensors", "C2H2.db", "-n", 2, "-o", "other/.extxyz"), "other/.extxyz cannot be written: Is a"),
    ],
)
def test_what_cannot_be_done_is_one_message(pykinml: Run, arguments: tuple[object, ...], said: str) -> None:
    ended = pykinml("select", *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not Path("next.txt").exists()
