"""The calibration of combined models: that of training where both apply, and of members whose self energies differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition
from pykinml_func.data.labels import has_forces
from pykinml_func.inference.evaluation import evaluate
from pykinml_func.inference.predictor import Predictor
from pykinml_func.inference.recalibration import fit_calibration
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import member_of, stack_members
from pykinml_func.training.calibration import calibrate
from pykinml_func.types import Calibration, Ensemble, Structures

AEV = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2)
MODEL = ModelConfig(aev=AEV, neurons=(5, 1), activations=("tanh", "identity"), fidelities=(0, 3))
SELF_ENERGIES = torch.tensor([[-1030.0, -13.5], [-1036.0, -13.7]], dtype=torch.float64)
FORMULAS = ("C2H2", "CH4", "C2H4", "CH4", "C2H2", "C2H4", "C2H4")


def ensemble_of(config: ModelConfig, n_members: int = 4, apart: float = 0.0) -> Ensemble:
    """apart: eV that the self energies of one member lie above those of the one before; their mean stays."""
    drawn = [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(n_members)]
    chosen = SELF_ENERGIES[-config.n_levels :]
    members = [
        each._replace(self_energies=chosen + apart * (place - (n_members - 1) / 2)) for place, each in enumerate(drawn)
    ]
    return Ensemble(config, stack_members(members))


@pytest.fixture
def labels(make_structures: Callable[..., Structures]) -> Structures:
    """Of levels 0 and 3, some missing; forces of a structure are there or not."""
    structures = make_structures(FORMULAS, seed=4, levels=(0, 3))
    counts = composition((structures.numbers == 1).astype(int), structures.offsets, 2)
    energies = counts @ SELF_ENERGIES.T.numpy() + np.random.default_rng(1).normal(0, 1, (len(FORMULAS), 2))
    energies[1, 0] = energies[2, 1] = np.nan
    forces, first = structures.forces.copy(), structures.offsets
    forces[first[1] : first[2], 0] = forces[first[2] : first[4], 1] = np.nan
    return structures._replace(energies=energies, forces=forces)


def of_training(ensemble: Ensemble, labels: Structures, make_source: Callable[..., Source]) -> Calibration:
    """What training finds, whose members have the same self energies."""
    source = make_source(labels, AEV, "positions")
    counts = composition(source.species, source.offsets, 2)
    energies = labels.energies - counts @ ensemble.members.self_energies[0].T.numpy()
    source = source._replace(energies=energies, forces=labels.forces, has_forces=has_forces(labels))
    packer = Packer(source, np.arange(labels.n_structures), 3, torch.float64, torch.device("cpu"))
    return calibrate(ensemble.model_config, ensemble.members, packer, True)


def test_equals_the_calibration_of_training(labels: Structures, make_source: Callable[..., Source]) -> None:
    ensemble = ensemble_of(MODEL)
    found, expected = fit_calibration(ensemble, labels), of_training(ensemble, labels, make_source)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and torch.isfinite(mine).all()
        np.testing.assert_allclose(mine, theirs, rtol=1e-7)
    assert found.energy_scale[0] != found.energy_scale[1] and found.force_scale[0] != found.force_scale[1]


def test_self_energies_of_each_member_count(labels: Structures) -> None:
    """Members whose self energies lie far apart have a large spread, which so is scaled down."""
    config = MODEL.model_copy(update={"fidelities": (3,)})
    labels = labels._replace(levels=labels.levels[1:], energies=labels.energies[:, 1:], forces=labels.forces[:, 1:])
    near, far = (fit_calibration(ensemble_of(config, apart=apart), labels) for apart in (0.0, 50.0))
    assert far.energy_scale < 0.05 * near.energy_scale
    torch.testing.assert_close(far.force_scale, near.force_scale)
    expected = 50.0 * np.arange(4).std(ddof=1) * np.sqrt(labels.sizes).max()
    assert float(far.spread_limit / far.energy_scale) == pytest.approx(expected, rel=0.05)


def test_a_calibrated_ensemble_is_right(labels: Structures) -> None:
    """The scale of what it then says is 1; fitted again, the calibration that is there does not count."""
    ensemble = ensemble_of(MODEL)
    once = ensemble._replace(calibration=fit_calibration(ensemble, labels))
    found = evaluate(Predictor(once), labels)
    assert found.energy_calibration is not None and found.force_calibration is not None
    assert found.energy_calibration.scale == pytest.approx(1, abs=1e-6)
    assert found.force_calibration.scale == pytest.approx(1, abs=1e-6)
    assert once.calibration is not None
    for mine, theirs in zip(fit_calibration(once, labels), once.calibration, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("forces", [True, False])
def test_what_has_no_label_is_not_known(labels: Structures, forces: bool) -> None:
    labels = labels._replace(energies=labels.energies * [1, np.nan], forces=labels.forces * (1 if forces else np.nan))
    found = fit_calibration(ensemble_of(MODEL), labels)
    assert torch.isfinite(found.energy_scale).tolist() == [True, False]
    assert torch.isfinite(found.force_scale).tolist() == [forces, forces]
    assert torch.isfinite(found.spread_limit)


def test_members_that_agree_say_nothing(labels: Structures) -> None:
    alike = stack_members([member_of(ensemble_of(MODEL).members, 0)] * 3)
    found = fit_calibration(Ensemble(MODEL, alike), labels)
    assert all(number.isnan().all() for number in found)
