"""Train an ensemble, find a transition state with Sella and exact Hessians, and follow it to the minima on both sides.

    pip install -e ".[kinetics]"
    python examples/08_transition_state.py [EPOCHS] [OUTPUT]

Formaldehyde to hydroxymethylene, from halfway between the two. What is found stands with its standard deviation over
the members beside wB97X/6-31G(d), to which they are trained: PySCF's values, from data/stationary_points.extxyz.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.io import read
from ase.units import invcm, kcal, mol
from sella import Sella

from pykinml_func import DataConfig, PyKinMLCalculator, RunConfig, TrainConfig, fit, vibrations
from pykinml_func.inference.vibrations import Vibrations
from pykinml_func.report.console import ConsoleReporter

DATA = Path(__file__).parent / "data"
KNOWN = {atoms.info["name"]: atoms for atoms in read(DATA / "stationary_points.extxyz", ":")}
REACTANT, SADDLE, PRODUCT = "h2co_min", "ts_h2co_hcoh", "hcoh_trans_min"


class Counted(PyKinMLCalculator):
    """Counts what it is asked for."""

    n_forces = n_hessians = 0

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        """Energy and forces."""
        self.n_forces += 1
        super().calculate(*args, **kwargs)

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """In the form of Sella's `hessian_function`."""
        self.n_hessians += 1
        return super().get_hessian(atoms)


def halfway() -> Atoms:
    """Between the two minima, the one turned onto the other."""
    guess, product = KNOWN[REACTANT].copy(), KNOWN[PRODUCT].copy()
    minimize_rotation_and_translation(guess, product)
    guess.positions = (guess.positions + product.positions) / 2
    return guess


def nearest(atoms: Atoms) -> tuple[str, str]:
    """The name of the known stationary point whose distances between atoms are most alike, and that in words."""
    known = {name: each for name, each in KNOWN.items() if each.symbols.formula == atoms.symbols.formula}
    changes = {name: each.get_all_distances() - atoms.get_all_distances() for name, each in known.items()}
    change, name = min((np.abs(change).max(), name) for name, change in changes.items())
    return name, f"{name}, distances within {change:.3f} Å"


def saddle_point(model: Path, exact: bool) -> Atoms:
    """Sella's search on the mean of the members, given an exact Hessian at each step or learning one from forces."""
    atoms = halfway()
    atoms.calc = calculator = Counted(model)
    options: dict[str, Any] = {"logfile": None}
    if exact:
        # 0: at each step; by default Sella asks again only where its update of the first one has lost the mode
        options |= {"hessian_function": calculator.get_hessian, "diag_every_n": 0}
    if not Sella(atoms, order=1, **options).run(fmax=1e-3, steps=100):
        sys.exit("Sella found no saddle point in 100 steps; train for more epochs")
    calls = f"{calculator.n_forces} forces, {calculator.n_hessians} Hessians"
    print(f"Sella with {'exact Hessians' if exact else 'forces alone'}: {calls}; {nearest(atoms)[1]}")
    print(f"    extrapolation {calculator.results['extrapolation']:.2f}; beyond what was trained on above 1")
    return atoms


def sides(model: Path, saddle: Vibrations) -> dict[str, Vibrations]:
    """The minima downhill from a saddle point, both ways along its imaginary mode, by name."""
    found = {}
    for step in (0.2, -0.2):  # amu^1/2 Å
        atoms = saddle.atoms.copy()
        atoms.positions += step * saddle.modes[0]
        minimum = vibrations(model, atoms, relax=True)
        name, words = nearest(minimum.atoms)
        print(f"downhill: {minimum.n_imaginary} imaginary modes; {words}")
        found[name] = minimum
    return found


def energies(electronic: np.ndarray | float, wavenumbers: np.ndarray) -> np.ndarray:
    """Energies without and with their zero-point part (2,...) kcal/mol. electronic: (...) eV; wavenumbers: (...,V)."""
    quanta = np.maximum(wavenumbers, 0).sum(axis=-1) * invcm  # an imaginary one is negative
    return np.stack([electronic, electronic + quanta / 2]) * mol / kcal


def compare(points: dict[str, Vibrations]) -> None:
    """Print barrier and wavenumbers, and what they are by wB97X/6-31G(d)."""
    ours = {name: energies(each.energies, each.member_wavenumbers) for name, each in points.items()}
    theirs = {name: energies(each.get_potential_energy(), each.info["wavenumbers"]) for name, each in KNOWN.items()}
    barriers = zip(ours[SADDLE] - ours[REACTANT], theirs[SADDLE] - theirs[REACTANT], strict=True)
    rows = list(zip(("barrier, kcal/mol", "barrier with zero-point energy"), barriers, strict=True))
    for name, each in points.items():
        modes = zip(each.member_wavenumbers.T, KNOWN[name].info["wavenumbers"], strict=True)
        rows += [(f"{name}, cm^-1", mode) for mode in modes]
    print(f"{'':32}{'ensemble':>18}{'wB97X/6-31G(d)':>18}")
    for label, (members, reference) in rows:
        print(f"{label:32}{members.mean():10.1f} ± {members.std(ddof=1):6.2f}{reference:17.1f}")


def main(epochs: int, output: Path) -> None:
    """Train, search twice, follow the imaginary mode both ways, compare."""
    data = DataConfig(input=(str(DATA / "*.db"),), fidelity=1)
    training = TrainConfig(  # wavenumbers want a larger weight of forces than the recipe's
        recipe="fast", epochs=epochs, batch_size=20, force_weight=0.5, ensemble=4, threads=1, output=output
    )
    fit(RunConfig(data=data, training=training), ConsoleReporter(), overwrite=True)
    model = output / "model.safetensors"

    print(f"guess: {nearest(halfway())[1]}")
    saddle_point(model, exact=False)
    saddle = vibrations(model, saddle_point(model, exact=True))
    print(f"saddle point: {saddle.n_imaginary} imaginary modes")
    if saddle.n_imaginary != 1:
        sys.exit("a transition state has one imaginary mode; train for more epochs")
    minima = sides(model, saddle)
    if minima.keys() != {REACTANT, PRODUCT}:
        sys.exit(f"the saddle point must lie between {REACTANT} and {PRODUCT}; train for more epochs")
    compare({SADDLE: saddle, **minima})


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        epochs=int(arguments[0]) if arguments else 40,
        output=Path(arguments[1]) if len(arguments) > 1 else Path("runs/transition_state"),
    )
