"""An ensemble that says how far it can be trusted: calibrated spread, structures beyond the data, what to label next.

python examples/07_uncertainty.py [EPOCHS] [OUTPUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase.build import molecule

from pykinml_func import DataConfig, Predictor, RunConfig, TrainConfig, fit, load_ensemble, read_structures, select
from pykinml_func.report.console import ConsoleReporter

DATA = Path(__file__).parent / "data"


def main(epochs: int, output: Path) -> None:
    """Train four networks at once on everything but hydroxymethyl, then ask them about that, and about formaldehyde."""
    files = sorted(str(path) for path in DATA.glob("*.db") if path.name != "CH3O.db")
    config = RunConfig(
        data=DataConfig(input=tuple(files)),
        training=TrainConfig(recipe="fast", ensemble=4, epochs=epochs, output=output),
    )
    result = fit(config, ConsoleReporter(), overwrite=True)
    print(f"test MAE {result.errors['test']['energy_mae']:.2f} kcal/mol")

    ensemble = load_ensemble(output / "model.safetensors")
    predictor = Predictor(ensemble)
    stretched = molecule("H2CO")
    stretched.set_distance(0, 1, 2.2, fix=1)
    for name, atoms in (("H2CO", molecule("H2CO")), ("H2CO, C-O 2.2 Å", stretched)):
        (found,) = predictor.predict([atoms])
        print(f"{name}: {found.energy:.3f} ± {found.energy_std:.3f} eV, extrapolation {found.extrapolation:.2f}")

    unseen = read_structures([DATA / "CH3O.db"], 1)
    predictions = predictor.predict(unseen)
    stds = [prediction.energy_std for prediction in predictions]
    errors = [found.energy - atoms.get_potential_energy() for found, atoms in zip(predictions, unseen, strict=True)]
    expected, actual = (23.06 * np.sqrt(np.mean(np.array(values, dtype=float) ** 2)) for values in (stds, errors))
    print(f"hydroxymethyl: an error of {expected:.1f} kcal/mol is expected, and {actual:.1f} is what it is")
    print(f"to label next: structures {', '.join(map(str, select(ensemble, unseen, 5)))}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        epochs=int(arguments[0]) if arguments else 20,
        output=Path(arguments[1]) if len(arguments) > 1 else Path("runs/uncertainty"),
    )
