"""Thermochemistry: against partition functions written out in SI units, and thermodynamics' own relations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.constants as si
from ase import Atoms
from ase.build import molecule
from ase.units import invcm, kB
from bound_models import bound_model, minimum, upside_down

from pykinml_func.errors import ConfigError, DataError
from pykinml_func.inference.thermochemistry import Conditions, check_conditions, thermochemistry
from pykinml_func.inference.vibrations import Vibrations, vibrations

TOLERANCE = 1e-7  # eV; the constants of ASE are those of CODATA 2014, scipy's are later

CONDITIONS = Conditions(temperature=500.0, pressure=2e5, symmetry=2, spin=0.5)


@pytest.fixture(scope="module")
def found() -> dict[str, Vibrations]:
    return {name: vibrations(bound_model(), minimum(name)) for name in ("H2CO", "C2H2", "CO", "O")}


def gibbs_energy(found: Vibrations, conditions: Conditions) -> float:
    """E + ZPE - kT ln(q), with q the product of the partition functions at p, in eV."""
    temperature, pressure, symmetry, spin = conditions
    thermal = si.k * temperature
    masses = found.atoms.get_masses() * si.atomic_mass
    translation = (2 * np.pi * masses.sum() * thermal / si.h**2) ** 1.5 * thermal / pressure
    moments = found.atoms.get_moments_of_inertia() * si.atomic_mass * 1e-20
    temperatures = si.hbar**2 / (2 * si.k * np.maximum(moments, 1e-60))
    rotation = {
        "monatomic": 1.0,
        "linear": temperature / temperatures[-1] / symmetry,
        "nonlinear": np.sqrt(np.pi * temperature**3 / temperatures.prod()) / symmetry,
    }[found.geometry]
    quanta = si.h * si.c * 100 * found.wavenumbers[found.wavenumbers > 0]
    vibration = np.prod(1 / (1 - np.exp(-quanta / thermal)))
    ways = translation * rotation * vibration * (2 * spin + 1)
    return float(found.energies.mean() + (quanta.sum() / 2 - thermal * np.log(ways)) / si.e)


@pytest.mark.parametrize("name", ["H2CO", "C2H2", "CO", "O"])
@pytest.mark.parametrize("conditions", [Conditions(), CONDITIONS], ids=["standard", "others"])
def test_gibbs_energy_is_that_of_the_partition_functions(
    found: dict[str, Vibrations], name: str, conditions: Conditions
):
    gas = thermochemistry(found[name], conditions).of_mean
    expected = gibbs_energy(found[name], conditions)
    assert gas.gibbs_energy == pytest.approx(expected, rel=0, abs=TOLERANCE * conditions.temperature)
    assert gas.gibbs_energy == pytest.approx(gas.enthalpy - conditions.temperature * gas.entropy, abs=1e-10)


@pytest.mark.parametrize("name", ["H2CO", "C2H2", "CO", "O"])
@pytest.mark.parametrize("value", [1e-30, 1e12])
def test_conditions_at_the_bounds_lose_nothing(found: dict[str, Vibrations], name: str, value: float):
    """Warnings are errors."""
    for conditions in (Conditions(temperature=value), Conditions(pressure=value)):
        assert np.isfinite(thermochemistry(found[name], conditions).of_mean).all()


def test_zero_point_energy_is_half_a_quantum_a_mode(found: dict[str, Vibrations]):
    gas = thermochemistry(found["H2CO"]).of_mean
    assert gas.zero_point_energy == pytest.approx(found["H2CO"].wavenumbers.sum() * invcm / 2, abs=1e-12)
    cold = thermochemistry(found["H2CO"], Conditions(temperature=1e-3)).of_mean
    assert cold.enthalpy == pytest.approx(found["H2CO"].energies.mean() + gas.zero_point_energy, abs=1e-6)
    assert thermochemistry(found["O"]).of_mean.zero_point_energy == 0


def test_the_laws_of_thermodynamics(found: dict[str, Vibrations]):
    """dG/dT = -S, d(G/T)/d(1/T) = H, and what pressure, symmetry and spin change."""
    step, middle = 0.01, thermochemistry(found["H2CO"], CONDITIONS).of_mean
    low, high = (CONDITIONS._replace(temperature=500.0 + sign * step) for sign in (-1, 1))
    below, above = (thermochemistry(found["H2CO"], each).of_mean.gibbs_energy for each in (low, high))
    assert (above - below) / (2 * step) == pytest.approx(-middle.entropy, rel=1e-6)
    ratio = (above / 500.01 - below / 499.99) / (1 / 500.01 - 1 / 499.99)
    assert ratio == pytest.approx(middle.enthalpy, rel=1e-6)
    for change, gain in (
        ({"pressure": 4e5}, np.log(2)),
        ({"symmetry": 6}, np.log(3)),
        ({"spin": 1.5}, -np.log(2)),
    ):
        other = thermochemistry(found["H2CO"], CONDITIONS._replace(**change)).of_mean
        assert other.gibbs_energy - middle.gibbs_energy == pytest.approx(kB * 500.0 * gain, abs=1e-10)
        assert other.enthalpy == pytest.approx(middle.enthalpy, abs=1e-12)


def test_a_transition_state_has_one_vibration_less():
    falling = vibrations(upside_down(bound_model()), minimum("CO"))
    gas = thermochemistry(falling, CONDITIONS).of_mean
    assert gas.zero_point_energy == 0
    assert gas.gibbs_energy == pytest.approx(gibbs_energy(falling, CONDITIONS), abs=TOLERANCE * 500)
    several = vibrations(upside_down(bound_model()), minimum("H2CO"))
    with pytest.raises(DataError, match=r"\(CH2O\) needs a minimum or a transition state, .* got 6; relax it"):
        thermochemistry(several)


def test_fragments_that_are_apart_are_no_one_molecule():
    """Their Gibbs energy would follow from the rounding of a wavenumber."""
    apart = molecule("H2O") + Atoms("H", [(15, 0, 0)])
    with pytest.raises(DataError, match=r"\(H3O\) needs one molecule, got 3 of 6 vibrations .*; compute each alone"):
        thermochemistry(vibrations(bound_model(), apart, relax=True))
    with pytest.raises(DataError, match=r"\(H2\) needs one molecule, got 1 of 1 vibrations within 1 cm\^-1 of zero"):
        thermochemistry(vibrations(bound_model(), Atoms("H2", [(0, 0, 0), (20, 0, 0)])))


def test_spread_is_the_standard_deviation_of_the_members():
    models = [bound_model(variant) for variant in range(4)]
    together = vibrations(models, minimum("H2CO"))
    gas = thermochemistry(together, CONDITIONS)
    alone = [thermochemistry(vibrations(model, minimum("H2CO")), CONDITIONS).of_mean for model in models]
    np.testing.assert_allclose(gas.members, alone, rtol=0, atol=1e-8)
    assert gas.spread == pytest.approx(np.std(alone, axis=0, ddof=1), abs=1e-8)
    assert gas.spread is not None and gas.spread.gibbs_energy > 0.05  # their self energies differ
    expected = gibbs_energy(together, CONDITIONS)
    assert gas.of_mean.gibbs_energy == pytest.approx(expected, abs=TOLERANCE * 500)
    assert thermochemistry(vibrations(models[0], minimum("CO"))).spread is None


def test_no_spread_of_members_that_disagree_on_what_it_is():
    """One of three falls where their mean holds."""
    together = vibrations([bound_model(), bound_model(1), upside_down(bound_model(2))], minimum("CO"))
    assert together.n_imaginary == 0
    gas = thermochemistry(together)
    assert gas.members == () and gas.spread is None
    still = together._replace(member_wavenumbers=np.array([[2000.0], [2000.0], [0.5]]))
    assert thermochemistry(still).members == ()
    assert gas.of_mean.zero_point_energy == pytest.approx(together.wavenumbers.sum() * invcm / 2, abs=1e-12)


WRONG = {
    "no temperature": (Conditions(temperature=0.0), "temperature must be between 1e-30 and 1e.12 K, got 0"),
    "endless": (Conditions(temperature=float("inf")), "temperature must be between 1e-30 and 1e.12 K, got inf"),
    "below vacuum": (Conditions(pressure=-1.0), "pressure must be between 1e-30 and 1e.12 Pa, got -1"),
    "vacuum": (Conditions(pressure=1e-320), "pressure must be between 1e-30 and 1e.12 Pa, got 9.99989e-321"),
    "no symmetry": (Conditions(symmetry=0), "symmetry must be a symmetry number of 1 or more, got 0"),
    "a third": (Conditions(spin=0.3), "spin must be half the number of unpaired electrons"),
    "below none": (Conditions(spin=-0.5), "spin must be half the number of unpaired electrons"),
}


@pytest.mark.parametrize("case", WRONG)
def test_says_what_is_wrong(found: dict[str, Vibrations], case: str):
    conditions, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        check_conditions(conditions)
    with pytest.raises(ConfigError, match=said):
        thermochemistry(found["CO"], conditions)
