"""Train to energies first, then continue from that model to forces.

    python examples/03_continue.py [EPOCHS] [OUTPUT]

Any model or checkpoint can be continued, on the same data or others of its elements. Its single-atom energies are kept.
"""

import sys
from pathlib import Path

from pykinml_func import DataConfig, RunConfig, TrainConfig, fit
from pykinml_func.report.console import ConsoleReporter

DATABASES = Path(__file__).parent / "data" / "*.db"


def main(epochs: int, output: Path) -> None:
    """Two runs on the same data and split."""
    data = DataConfig(input=(str(DATABASES),), fidelity=1)
    first = TrainConfig(epochs=epochs, batch_size=20, learning_rate=3e-3, output=output / "energies")
    energies = fit(RunConfig(data=data, training=first), ConsoleReporter(), overwrite=True)

    second = TrainConfig(
        epochs=epochs,
        batch_size=20,
        learning_rate=1e-3,
        start_from=output / "energies" / "model.safetensors",
        forces=True,
        learn_loss_weights=True,
        output=output / "forces",
    )
    forces = fit(RunConfig(data=data, training=second), ConsoleReporter(), overwrite=True)
    for name, result in (("energies", energies), ("then forces", forces)):
        print(f"{name}: test MAE {result.errors['test']['energy_mae']:.2f} kcal/mol")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        epochs=int(arguments[0]) if arguments else 100,
        output=Path(arguments[1]) if len(arguments) > 1 else Path("runs/continue"),
    )
