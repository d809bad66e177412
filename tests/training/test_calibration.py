"""The scale of Student's t, and what validation structures say of an ensemble: levels, masks, one member."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training import calibration as module
from pykinml_func.training.calibration import calibrate, student_scale
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Batch, Params, Structures

N_MEMBERS = 4


@pytest.mark.parametrize("freedom", [1, 2, 7, 100])
def test_finds_the_scale_of_students_t(freedom: int) -> None:
    numbers = 1.7 * np.random.default_rng(freedom).standard_t(freedom, 20_000)
    assert student_scale(torch.from_numpy(numbers**2), freedom) == pytest.approx(1.7, rel=0.03)


def test_is_the_root_mean_square_for_many_members() -> None:
    squares = torch.from_numpy(np.random.default_rng(1).standard_normal(1000) ** 2)
    assert student_scale(squares, 10**9) == pytest.approx(float(squares.mean().sqrt()), rel=1e-6)


def test_some_outliers_count_little() -> None:
    numbers = np.random.default_rng(2).standard_t(7, 10_000)
    numbers[:100] *= 1e6
    assert student_scale(torch.from_numpy(numbers**2), 7) == pytest.approx(1, rel=0.1)


def test_no_number_no_scale() -> None:
    assert math.isnan(student_scale(torch.zeros(0), 7)) and math.isnan(student_scale(torch.zeros(3), 7))


class Made:
    """A packer of structures whose labels are set from what members predict."""

    def __init__(self, config: ModelConfig, structures: Structures, make_source: Callable[..., Source]) -> None:
        self.config, self.structures = config, structures
        self._source = make_source(structures, config.aev, "positions")
        drawn = [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(N_MEMBERS)]
        self.members: Params = stack_members(drawn)
        step = build_predict_step(config, True, N_MEMBERS)
        packer = self.packer(structures.energies, structures.forces, structures.n_structures)
        energies, forces = step(self.members, packer.pack(packer.members))
        self.energies: np.ndarray = energies.numpy()
        """(E,M,L)"""
        self.forces = packer.unpack(packer.members, forces.movedim(0, -1))
        """(A,L,3,E)"""

    def packer(self, energies: np.ndarray, forces: np.ndarray, batch_size: int) -> Packer:
        sizes = self.structures.sizes
        there = np.isfinite(forces).all(axis=2)
        has = np.logical_and.reduceat(there, np.cumsum(sizes) - sizes)
        source = self._source._replace(energies=energies, forces=forces, has_forces=has)
        return Packer(source, np.arange(len(energies)), batch_size, torch.float64, torch.device("cpu"))

    def labels(self, energy_scale: np.ndarray, force_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (M,L) and forces (A,L,3) that are so many standard deviations from the mean. scales: (L,)."""
        signs = np.random.default_rng(3).choice([-1, 1], len(self.forces))
        energies = self.energies.mean(axis=0)
        energies = energies + signs[: len(energies), None] * energy_scale * self.energies.std(axis=0, ddof=1)
        spread = self.forces.std(axis=-1, ddof=1)
        forces = self.forces.mean(axis=-1) + signs[:, None, None] * force_scale[:, None] * spread
        return energies, forces


@pytest.fixture
def made(
    chain_config: ModelConfig, make_structures: Callable[..., Structures], make_source: Callable[..., Source]
) -> Made:
    return Made(chain_config, make_structures(["C2H2", "CH4", "C2H4"] * 3, seed=6, levels=(0, 3)), make_source)


@pytest.mark.parametrize("batch_size", [2, 9])
def test_errors_of_so_many_standard_deviations_give_that_scale(made: Made, batch_size: int) -> None:
    """At every level; and the largest spread is that of the highest, calibrated."""
    packer = made.packer(*made.labels(np.array([0.4, 1.7]), np.array([3.0, 0.2])), batch_size)
    found = calibrate(made.config, made.members, packer, True)
    assert found.energy_scale.tolist() == pytest.approx([0.4, 1.7], rel=1e-6)
    assert found.force_scale.tolist() == pytest.approx([3.0, 0.2], rel=1e-6)
    stds = 1.7 * made.energies[:, :, 1].std(axis=0, ddof=1) / np.sqrt(made.structures.sizes)
    assert found.spread_limit.item() == pytest.approx(stds.max(), rel=1e-6)
    assert {each.dtype for each in found} == {torch.float64}


def test_missing_labels_do_not_count(made: Made) -> None:
    energies, forces = made.labels(np.array([0.4, 1.7]), np.array([3.0, 0.2]))
    energies[:4, 0], forces[: made.structures.offsets[5], 1] = np.nan, np.nan
    found = calibrate(made.config, made.members, made.packer(energies, forces, 4), True)
    assert found.energy_scale.tolist() == pytest.approx([0.4, 1.7], rel=1e-6)
    assert found.force_scale.tolist() == pytest.approx([3.0, 0.2], rel=1e-6)


def test_what_has_no_labels_is_not_known(made: Made) -> None:
    energies, forces = made.labels(np.array([0.4, 1.7]), np.array([3.0, 0.2]))
    energies[:, 1], forces[:, 0] = np.nan, np.nan
    found = calibrate(made.config, made.members, made.packer(energies, forces, 4), True)
    assert found.energy_scale[0].item() == pytest.approx(0.4, rel=1e-6) and found.energy_scale[1].isnan()
    assert found.force_scale[0].isnan() and found.force_scale[1].item() == pytest.approx(0.2, rel=1e-6)
    stds = made.energies[:, :, 1].std(axis=0, ddof=1) / np.sqrt(made.structures.sizes)
    assert found.spread_limit.item() == pytest.approx(stds.max(), rel=1e-9), "plain, without a scale"
    assert calibrate(made.config, made.members, made.packer(energies, forces, 4), False).force_scale.isnan().all()


def test_one_member_has_no_calibration(made: Made) -> None:
    alone = stack_members([init_params(made.config, torch.Generator())])
    packer = made.packer(made.structures.energies, made.structures.forces, 4)
    found = calibrate(made.config, alone, packer, True)
    assert [each.isnan().all() for each in found] == [True] * 3
    assert [each.shape for each in found] == [(2,), (2,), ()]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_calibrated_ensemble_has_a_scale_of_one(
    model_config: ModelConfig,
    make_structures: Callable[..., Structures],
    make_source: Callable[..., Source],
    monkeypatch: pytest.MonkeyPatch,
    scale: float,
) -> None:
    """Eight members drawn from Gaussians of a width that differs from structure to structure, in which they know it
    only from their own spread; and components where all agree to rounding, which say nothing.
    """
    n = 400
    structures = make_structures(["CH4"] * n, seed=7)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def drawn(labels: Tensor, n_members: int) -> Tensor:
        noise = normal(n_members, *labels.shape)
        width = 10 ** normal(*labels.shape).clamp(-1.5, 1.5)
        return labels + width * (scale * normal(*labels.shape) + noise - noise.mean(dim=0))

    def drawn_step(_: ModelConfig, _forces: bool, n_members: int) -> Callable[[Params, Batch], tuple[Tensor, ...]]:
        def step(_: Params, batch: Batch) -> tuple[Tensor, Tensor]:
            assert batch.forces is not None
            forces = drawn(batch.forces, n_members)
            forces[..., 0] = batch.forces[..., 0] + 1e-6 + 1e-13 * normal(*forces.shape[:-1])
            return drawn(batch.energies, n_members), forces

        return step

    monkeypatch.setattr(module, "build_predict_step", drawn_step)
    packer = Packer(
        make_source(structures, model_config.aev, "positions"), np.arange(n), 64, torch.float64, torch.device("cpu")
    )
    members = stack_members([init_params(model_config, torch.Generator())] * 8)
    found = calibrate(model_config, members, packer, True)
    assert found.energy_scale.item() == pytest.approx(scale, rel=0.08)
    assert found.force_scale.item() == pytest.approx(scale, rel=0.03)
