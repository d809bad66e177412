"""Several fidelity levels in one model: GFN1-xTB below, wB97X/6-31G(d) above.

    python examples/05_multifidelity.py [EPOCHS] [OUTPUT]

The upper level's network sees the AEV and the atomic energy of the level below, and adds to it. Structures that have
the lower level alone (two thirds of the bundled ones) train that one.
"""

import sys
from pathlib import Path

import torch
from ase.build import molecule

from pykinml_func import DataConfig, RunConfig, TrainConfig, fit, level_energies_and_forces, load_model
from pykinml_func.report.console import ConsoleReporter

DATABASES = Path(__file__).parent / "data" / "*.db"


def main(epochs: int, output: Path) -> None:
    """Train both levels, then ask for the energies and forces of each."""
    config = RunConfig(
        data=DataConfig(input=(str(DATABASES),), fidelity=1, low_fidelity=(0,), multi_fidelity=True),
        training=TrainConfig(epochs=epochs, batch_size=20, learning_rate=3e-3, forces=True, output=output),
    )
    result = fit(config, ConsoleReporter(), overwrite=True)
    errors = result.errors["test"]
    print(f"test MAE, kcal/mol: level 1 {errors['energy_mae']:.2f}, level 0 {errors['level_0_energy_mae']:.2f}")

    model_config, params = load_model(output / "model.safetensors")
    atoms = molecule("H2CO")
    species = torch.tensor([model_config.aev.elements.index(symbol) for symbol in atoms.symbols])
    energies, forces = level_energies_and_forces(model_config, params, species, torch.from_numpy(atoms.positions))
    for level, energy, force in zip(model_config.fidelities, energies.tolist(), forces, strict=True):
        print(f"H2CO, level {level}: {energy:.4f} eV, largest force {force.norm(dim=1).max().item():.3f} eV/Å")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        epochs=int(arguments[0]) if arguments else 50,
        output=Path(arguments[1]) if len(arguments) > 1 else Path("runs/multifidelity"),
    )
