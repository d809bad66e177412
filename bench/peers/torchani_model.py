"""TorchANI's model of the problem: AEVs that equal ours up to its factors, networks with our weights, in float64.

# M structures, n atoms of each, S species, D AEV length, K structures that values are checked on
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchani.aev import AEVComputer, ANIAngular, ANIRadial
from torchani.arch import ANI
from torchani.nn import ANINetworks, AtomicNetwork, Ensemble
from torchani.sae import SelfEnergy

Problem = dict[str, np.ndarray]
SYMBOLS = ("C", "H")
HARTREE = 27.211386024367243
"""eV, as ASE has it, which its calculator multiplies by"""


class Gaussian(nn.Module):
    """exp(-x²), which TorchANI does not have."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.exp(-(x**2))


def computer(problem: Problem) -> AEVComputer:
    """TorchANI's AEVs with our grids. Its cosine holds the 0.95 that our beta is; its terms the factors 0.25 and 2."""
    radial_grid, angular_grid = problem["radial_shifts"], problem["angular_shifts"]
    sections, zeta = problem["angular_sections"], float(problem["zeta"])
    radial_eta, angular_eta = float(problem["radial_eta"]), float(problem["angular_eta"])
    radial = ANIRadial(radial_eta, radial_grid.tolist(), float(problem["radial_cutoff"]))
    angular = ANIAngular(angular_eta, zeta, angular_grid.tolist(), sections.tolist(), float(problem["angular_cutoff"]))
    made = AEVComputer(radial, angular, num_species=len(SYMBOLS)).double()
    # TorchANI rounds its grids to float32 first.
    for module, name, values in (
        (made.radial, "shifts", radial_grid),
        (made.radial, "eta", [radial_eta]),
        (made.angular, "shifts", angular_grid),
        (made.angular, "eta", [angular_eta]),
        (made.angular, "sections", sections),
    ):
        getattr(module, name).copy_(torch.as_tensor(values, dtype=torch.float64))
    return made


def factors(length: int, n_radial: int) -> Tensor:
    """(D,): TorchANI's AEV over ours."""
    made = torch.full((length,), 2.0, dtype=torch.float64)
    made[: len(SYMBOLS) * n_radial] = 0.25
    return made


def member(problem: Problem, number: int, unit: float) -> ANINetworks:
    """Networks with our weights, the first layer's for TorchANI's AEVs, energies in eV divided by `unit`."""
    weights = [torch.from_numpy(problem[f"weights_{layer}"][number]) for layer in range(4)]
    scale = factors(weights[0].shape[-1], len(problem["radial_shifts"]))
    weights[0], weights[-1] = weights[0] / scale, weights[-1] / unit
    made = {}
    for place, symbol in enumerate(SYMBOLS):
        dims = (weights[0].shape[-1], *(layer.shape[1] for layer in weights))
        network = AtomicNetwork(dims, activation=Gaussian(), bias=False).double()
        for own, layer in zip([*network.layers, network.final_layer], weights, strict=True):
            own.weight.data.copy_(layer[place])
        made[symbol] = network
    return ANINetworks(made)


def model(problem: Problem, members: int = 1, unit: float = 1.0, self_energies: bool = True) -> ANI:
    """A TorchANI model of one member or of an ensemble."""
    each = [member(problem, number, unit) for number in range(members)]
    shifter = SelfEnergy(SYMBOLS, [0.0] * len(SYMBOLS)).double()
    shifter.self_energies.copy_(torch.from_numpy(problem["self_energies"]) / unit)
    made = ANI(SYMBOLS, computer(problem), each[0] if members == 1 else Ensemble(each), shifter)
    made.set_enabled("energy_shifter", self_energies)
    return made


def check(problem: Problem) -> dict[str, float]:
    """The largest differences to our AEVs, energies (eV) and forces (eV/Å). Raises ValueError for any above 1e-8."""
    count, length = len(problem["our_energies"]), problem["our_aevs"].shape[-1]
    species = torch.from_numpy(problem["numbers"][:count])
    positions = torch.from_numpy(problem["positions"][:count]).requires_grad_(True)
    whole = model(problem)
    aevs = whole.aev_computer(whole.species_converter(species), positions)
    energies = whole((species, positions)).energies
    forces = -torch.autograd.grad(energies.sum(), positions)[0]
    ours = torch.from_numpy(problem["our_aevs"]) * factors(length, len(problem["radial_shifts"]))
    found: dict[str, Any] = {
        "aevs": (aevs - ours).abs().max().item(),
        "energies": (energies - torch.from_numpy(problem["our_energies"])).abs().max().item(),
        "forces": (forces - torch.from_numpy(problem["our_forces"])).abs().max().item(),
    }
    if found["aevs"] > 1e-10 or found["energies"] > 1e-8 or found["forces"] > 1e-8:
        raise ValueError(f"TorchANI's values must equal ours before it is timed, they differ by {found}")
    return found
