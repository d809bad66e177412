"""Predict with a trained model: energy and forces of formaldehyde as plain tensors, then a relaxation with ASE.

Train a model of C, H and O first, or name one:  python examples/02_predict.py [runs/quickstart/model.safetensors]
"""

from __future__ import annotations

import sys

import torch
from ase.build import molecule
from ase.optimize import BFGS

from pykinml_func import PyKinMLCalculator, energy_and_forces, load_model


def main(path: str = "runs/quickstart/model.safetensors") -> None:
    """Two roads to the same numbers: pure functions of tensors, and an ASE calculator."""
    model_config, params = load_model(path)
    atoms = molecule("H2CO")
    atoms.rattle(0.05, seed=1)

    # The functional core: tensors in, tensors out. An atom's species is its element's place in the model's list.
    elements = model_config.aev.elements
    species = torch.tensor([elements.index(symbol) for symbol in atoms.symbols])
    energy, forces = energy_and_forces(model_config, params, species, torch.from_numpy(atoms.positions))
    print(f"energy_and_forces:  {energy.item():.6f} eV, largest force {forces.norm(dim=1).max().item():.4f} eV/Å")

    # The same model as an ASE calculator, which relaxes, vibrates or moves the molecule like any other.
    atoms.calc = PyKinMLCalculator((model_config, params))
    largest = (atoms.get_forces() ** 2).sum(axis=1).max() ** 0.5
    print(f"PyKinMLCalculator:  {atoms.get_potential_energy():.6f} eV, largest force {largest:.4f} eV/Å")

    with BFGS(atoms, logfile=None) as optimizer:
        converged = optimizer.run(fmax=0.01, steps=200)
    print(f"relaxed:            {atoms.get_potential_energy():.6f} eV after {optimizer.nsteps} steps", end="")
    print(f", C-O {atoms.get_distance(0, 1):.3f} Å" if converged else ", not converged")


if __name__ == "__main__":
    main(*sys.argv[1:])
