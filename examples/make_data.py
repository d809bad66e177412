"""Make the bundled example data: small C, H, O species at GFN1-xTB and wB97X/6-31G(d).

Stationary points and reaction paths are found at wB97X/6-31G(d); around each of their
geometries ("anchors") structures are drawn by classical normal-mode sampling on GFN1-xTB
Hessians, and labelled with both methods.  Everything follows from one seed, and a run that
was stopped goes on from its work directory.  Needs the extra ``data`` (pyscf, tblite, sella).

Energies are in eV, lengths in Å, masses in amu, temperatures in K, wavenumbers in cm^-1.
"""

# mypy: allow-untyped-calls

import argparse
import contextlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.io import iread, write
from ase.optimize import BFGS
from pyscf import dft, gto, lib
from pyscf.dft.rks import KohnShamDFT
from scipy.optimize import brentq
from sella import Sella
from tblite.ase import TBLite

from pykinml_func.data.formats.database import write_database
from pykinml_func.types import Structures

Array = np.ndarray
METHODS = {0: "GFN1-xTB (tblite)", 1: "wB97X/6-31G(d) (PySCF)"}
TEMPERATURES = (300.0, 600.0, 1000.0, 1500.0)  # K
FLOOR = 350.0  # cm^-1: softer modes are sampled as if they were this stiff
CLOSEST = 0.7  # least distance of two atoms, in sums of their covalent radii
FMAX = 0.003  # eV/Å: convergence of the stationary points
IRC_STEP, IRC_STEPS, IRC_FRAMES = 0.1, 40, 10  # Å amu^1/2; steps and kept frames a side
APART = 3.0  # Å: where a path ends at a lost atom
LOW_FOR_HIGH = 2.5  # structures with the low level only for one with both
CAP = 0.1  # eV: highest energy above the anchor beyond n_modes kT, twice the mean
DIFFERENCE = 5e-4  # Å: step of the check by central differences
CHECK_EVERY = 20  # of the structures with both levels, for central differences
WAVENUMBER = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm  # of (eV/amu)^1/2/Å


class Point(NamedTuple):
    """A stationary point to find: where from, and how many structures around it get both levels."""

    formula: str
    multiplicity: int
    guess: str | list[tuple[float, float, float]]  # a name in ase.build, or positions in Å
    high: int
    path_high: int = 0  # of a transition state: along its path


POINTS = {
    "ts_h2co_h2_co": Point("CH2O", 1, [(0, 0, 0), (-1.05, 0.32, 0), (-0.49, 1.52, 0), (1.17, 0, 0)], 45, 40),
    "ts_h2co_hcoh": Point("CH2O", 1, [(0, 0, 0), (-0.47, -1.01, 0), (0.75, 1.05, 0), (1.30, 0, 0)], 45, 40),
    "h2co_min": Point("CH2O", 1, "H2CO", 55),
    "hcoh_trans_min": Point("CH2O", 1, [(0, 0, 0), (-0.23, 1.09, 0), (1.59, -0.92, 0), (1.31, 0, 0)], 40),
    "hcoh_cis_min": Point("CH2O", 1, [(0, 0, 0), (-0.23, 1.09, 0), (1.59, 0.92, 0), (1.31, 0, 0)], 25),
    "hco_min": Point("CHO", 2, "HCO", 30),
    "ch2oh_min": Point("CH3O", 2, "H2COH", 70),
    "ch3oh_min": Point("CH4O", 1, "CH3OH", 70),
    "ch4_min": Point("CH4", 1, "CH4", 30),
    "h2o_min": Point("H2O", 1, "H2O", 40),
    "co_min": Point("CO", 1, "CO", 10),
    "h2_min": Point("H2", 1, "H2", 10),
    "ts_hco_h_co": Point("CHO", 2, [(0, 0, 0), (-0.87, 1.63, 0), (1.14, 0, 0)], 20, 30),
}


class NotConvergedError(RuntimeError):
    """The self-consistent field found no stable solution."""


class Sample(NamedTuple):
    """A drawn structure with its low-level label."""

    key: str
    name: str
    temperature: float  # K
    high: bool
    multiplicity: int
    atoms: Atoms
    energy: float  # eV, GFN1-xTB
    forces: Array  # (N, 3) eV/Å, GFN1-xTB


def converge(mf: KohnShamDFT, density: Array | None = None) -> KohnShamDFT:
    """Converge the field, by second order where DIIS fails."""
    mf.kernel(dm0=density)
    if not mf.converged:
        mf = mf.newton()
        mf.kernel(mf.mo_coeff, mf.mo_occ)
        mf = mf.undo_newton()
    if not mf.converged:
        raise NotConvergedError
    return mf


def dft_field(atoms: Atoms, multiplicity: int, stable: bool) -> KohnShamDFT:
    """Converge wB97X/6-31G(d), unrestricted unless a singlet; ``stable``: to no saddle point."""
    geometry = list(zip(atoms.symbols, atoms.positions.tolist(), strict=True))
    mol = gto.M(atom=geometry, basis="6-31g(d)", spin=multiplicity - 1, verbose=0)
    mf = dft.RKS(mol) if multiplicity == 1 else dft.UKS(mol)
    mf.xc, mf.grids.level = "wb97x", 3
    mf.conv_tol, mf.conv_tol_grad, mf.max_cycle = 1e-10, 1e-6, 80
    mf = converge(mf)
    for _ in range(3 if stable else 0):
        orbitals, _, ok, _ = mf.stability(return_status=True)
        if ok:
            return mf
        mf = converge(mf, mf.make_rdm1(orbitals, mf.mo_occ))
    if stable:
        raise NotConvergedError
    return mf


def dft_label(atoms: Atoms, multiplicity: int, stable: bool = False) -> dict[str, Any]:
    """Label with the energy (eV), forces (eV/Å, with grid response) and spin contamination."""
    mf = dft_field(atoms, multiplicity, stable)
    gradient = mf.nuc_grad_method()
    gradient.grid_response = True
    spin = (multiplicity - 1) / 2
    excess = mf.spin_square()[0] - spin * (spin + 1) if multiplicity > 1 else 0.0
    forces = -gradient.kernel() * units.Hartree / units.Bohr
    return {"energy": mf.e_tot * units.Hartree, "forces": forces.tolist(), "s2_excess": excess}


class Dft(Calculator):
    """ASE calculator of the high level."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, multiplicity: int) -> None:
        """Take the multiplicity of all that is to come."""
        super().__init__()
        self.multiplicity = multiplicity

    def calculate(self, *args: object) -> None:
        """Fill the results from one gradient."""
        super().calculate(*args)
        label = dft_label(self.atoms or Atoms(), self.multiplicity)
        self.results = {"energy": label["energy"], "forces": np.array(label["forces"])}


def gfn1(multiplicity: int) -> Calculator:
    """Return the low level's ASE calculator, tight enough for 1e-5 eV/Å forces."""
    return TBLite(method="GFN1-xTB", multiplicity=multiplicity, accuracy=0.01, verbosity=0)


def with_calculator(atoms: Atoms, calc: Calculator) -> Atoms:
    """Return a copy that carries the calculator."""
    copy: Atoms = atoms.copy()
    copy.calc = calc
    return copy


def hessian(atoms: Atoms, step: float = 0.005) -> Array:
    """Differentiate the forces centrally: (3N, 3N) eV/Å^2, symmetric; step in Å."""
    work = with_calculator(atoms, atoms.calc)
    rows = []
    for shift in np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3) * step:
        sides = []
        for sign in (1, -1):
            work.positions = atoms.positions + sign * shift
            sides.append(work.get_forces().ravel())
        rows.append((sides[1] - sides[0]) / (2 * step))
    matrix = np.array(rows)
    return np.asarray((matrix + matrix.T) / 2)


def modes(atoms: Atoms, matrix: Array) -> tuple[Array, Array]:
    """Find the vibrations: eigenvalues (n,) eV/(amu Å^2), mass-weighted vectors (3N, n)."""
    root = np.sqrt(atoms.get_masses())
    arm = atoms.positions - atoms.get_center_of_mass()
    rigid = [root[:, None] * axis for axis in np.eye(3)]
    rigid += [root[:, None] * np.cross(axis, arm) for axis in np.eye(3)]
    left, size, _ = np.linalg.svd(np.reshape(rigid, (6, -1)).T)
    inner = left[:, int((size > 1e-2).sum()) :]
    weight = np.repeat(root, 3)
    values, vectors = np.linalg.eigh(inner.T @ (matrix / np.outer(weight, weight)) @ inner)
    return values, inner @ vectors


def wavenumbers(values: Array) -> Array:
    """Turn eigenvalues into wavenumbers, the imaginary ones negative."""
    return np.asarray(WAVENUMBER * np.sign(values) * np.sqrt(np.abs(values)))


def quadratic_step(gradient: Array, matrix: Array) -> Array | None:
    """Follow the steepest descent of a quadratic model for `IRC_STEP`; None if it ends before."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.where(np.abs(values) < 1e-8, 1e-8, values)
    slopes = vectors.T @ gradient

    def descend(log_time: float) -> Array:
        change = np.expm1(np.clip(-values * 10**log_time, -700, 50)) / values
        return np.asarray(vectors @ (change * slopes))

    def excess(log_time: float) -> float:
        return float(np.linalg.norm(descend(log_time))) - IRC_STEP

    return descend(brentq(excess, -6, 4)) if excess(4) > 0 else None


def loosest(atoms: Atoms) -> float:
    """Measure how far (Å) the most lonely atom is from its nearest neighbour."""
    distances = atoms.get_all_distances() + np.diag([np.inf] * len(atoms))
    return float(distances.min(axis=0).max())


def descent(ts: Atoms, first: Array, multiplicity: int) -> list[Atoms]:
    """Walk down one side of a transition state, in mass-weighted coordinates, from a first move.

    The gradients are the high level's, the Hessians of the quadratic models the low level's.
    """
    root = np.sqrt(ts.get_masses())[:, None]
    atoms, energy = with_calculator(ts, ts.calc), np.inf
    frames: list[Atoms] = []
    move: Array | None = first
    while move is not None and len(frames) < IRC_STEPS:
        atoms.positions += move.reshape(-1, 3) / root
        if atoms.get_potential_energy() > energy or loosest(atoms) > APART:
            break
        energy = atoms.get_potential_energy()
        frames.append(atoms.copy())
        low = hessian(with_calculator(atoms, gfn1(multiplicity)))
        weight = np.repeat(root, 3)
        move = quadratic_step(-(atoms.get_forces() / root).ravel(), low / np.outer(weight, weight))
    kept = np.linspace(0, len(frames) - 1, IRC_FRAMES).round().astype(int)
    return [frames[i] for i in np.unique(kept)]


def starting_atoms(point: Point) -> Atoms:
    """Build the guess with its atoms in the formula's order."""
    if isinstance(point.guess, str):
        guess = molecule(point.guess)
        order = np.argsort(guess.get_chemical_symbols(), kind="stable")
        return Atoms(guess.symbols[order], guess.positions[order])
    return Atoms(point.formula, point.guess)


def find_anchor(name: str, work: Path, seed: int) -> None:
    """Optimise a stationary point, its vibrations and path, and keep them in the work directory."""
    point = POINTS[name]
    np.random.seed(seed)  # noqa: NPY002 - Sella draws from this one
    atoms = with_calculator(starting_atoms(point), Dft(point.multiplicity))
    saddle = name.startswith("ts_")
    log = str(work / f"{name}.log")
    search = Sella(atoms, order=1, logfile=log) if saddle else BFGS(atoms, logfile=log)
    if not search.run(fmax=FMAX, steps=200):
        raise RuntimeError(f"{name} did not converge")
    values, vectors = modes(atoms, hessian(atoms))
    if (values < 0).sum() != int(saddle):
        raise RuntimeError(f"{name} has the wavenumbers {wavenumbers(values)}")
    atoms.info = {"name": name, "multiplicity": point.multiplicity}
    atoms.info["wavenumbers"] = wavenumbers(values)
    if saddle:
        first = IRC_STEP * vectors[:, 0]
        sides = [descent(atoms, sign * first, point.multiplicity) for sign in (1, -1)]
        write(work / f"irc_{name[3:]}.xyz", sides[0][::-1] + sides[1], format="extxyz")
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    frozen = with_calculator(atoms, SinglePointCalculator(atoms, **results))
    write(work / f"{name}.tmp", frozen, format="extxyz")
    (work / f"{name}.tmp").rename(work / f"{name}.xyz")


class Group(NamedTuple):
    """Structures of one name: drawn round these anchors in turn."""

    name: str
    point: Point
    anchors: list[Atoms]
    high: int
    low: int


def read_all(work: Path, name: str) -> list[Atoms]:
    """Read the anchors of a name from the work directory."""
    return list(iread(work / f"{name}.xyz"))


def groups(work: Path) -> list[Group]:
    """List what to sample, from the anchors in the work directory."""
    found = []
    for name, point in POINTS.items():
        low = round(LOW_FOR_HIGH * point.high) if point.high > 10 else point.high
        found.append(Group(name, point, read_all(work, name), point.high, low))
        if point.path_high:
            path = f"irc_{name[3:]}"
            low = round(LOW_FOR_HIGH * point.path_high)
            found.append(Group(path, point, read_all(work, path), point.path_high, low))
    return found


def too_close(atoms: Atoms) -> bool:
    """Say whether two atoms nearly coincide."""
    radii = covalent_radii[atoms.numbers]
    least = CLOSEST * (radii[:, None] + radii)
    np.fill_diagonal(least, 0.0)
    return bool((atoms.get_all_distances() < least).any())


def anchor_modes(anchor: Atoms, multiplicity: int) -> tuple[float, Array, Array]:
    """Find the low level's energy (eV), floored eigenvalues and Cartesian modes (n, N, 3)."""
    atoms = with_calculator(anchor, gfn1(multiplicity))
    values, vectors = modes(atoms, hessian(atoms))
    stiff = np.maximum(np.abs(values), (FLOOR / WAVENUMBER) ** 2)
    unweighted = vectors.T.reshape(len(values), -1, 3) / np.sqrt(atoms.get_masses())[:, None]
    return float(atoms.get_potential_energy()), stiff, unweighted


def draw(group: Group, seed: int) -> tuple[list[Sample], Counter[str]]:
    """Draw a group's structures with their low-level labels; also count why draws were not kept."""
    rng = np.random.default_rng(seed)
    multiplicity, lost = group.point.multiplicity, Counter[str]()
    samples: list[Sample] = []
    prepared = [anchor_modes(anchor, multiplicity) for anchor in group.anchors]
    while len(samples) < group.high + group.low:
        turn, frame = divmod(len(samples), len(prepared))
        temperature = TEMPERATURES[(turn + frame) % len(TEMPERATURES)]
        bottom, stiff, vectors = prepared[frame]
        thermal = units.kB * temperature
        sizes = rng.standard_normal(len(stiff)) * np.sqrt(thermal / stiff)
        atoms = with_calculator(group.anchors[frame], gfn1(multiplicity))
        atoms.positions = (atoms.positions + np.tensordot(sizes, vectors, 1)).round(8)
        try:
            reason = "close atoms" if too_close(atoms) else ""
            if not reason and atoms.get_potential_energy() - bottom > len(stiff) * thermal + CAP:
                reason = "high energy"
        except CalculationFailed:
            reason = "low level not converged"
        if reason:
            lost[reason] += 1
            continue
        label = (float(atoms.get_potential_energy()), atoms.get_forces())
        key, high = f"{group.name}/{len(samples)}", len(samples) < group.high
        samples.append(Sample(key, group.name, temperature, high, multiplicity, atoms.copy(), *label))
    return samples, lost


def central_difference(atoms: Atoms, energy: Callable[[Atoms], float], forces: Array, seed: int) -> float:
    """Compare the slope of the energy along a random unit direction with the forces, in eV/Å."""
    along = np.random.default_rng(seed).standard_normal(atoms.positions.shape)
    along /= np.linalg.norm(along)
    sides = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * DIFFERENCE * along
        sides.append(energy(moved))
    return float(abs((sides[0] - sides[1]) / (2 * DIFFERENCE) + np.sum(forces * along)))


def label_high(job: tuple[Sample, bool, int]) -> dict[str, Any]:
    """Label a sample at the high level: a line of the work file."""
    sample, check, seed = job
    line: dict[str, Any] = {"key": sample.key, "positions": sample.atoms.positions.tolist()}
    stable = check or (sample.multiplicity > 1 and not sample.name.endswith("_min"))

    def energy(atoms: Atoms) -> float:
        return float(dft_field(atoms, sample.multiplicity, stable).e_tot * units.Hartree)

    try:
        line |= dft_label(sample.atoms, sample.multiplicity, stable)
        if check:
            line["check"] = central_difference(sample.atoms, energy, np.array(line["forces"]), seed)
    except NotConvergedError:
        line["failed"] = True
    return line


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Read the whole lines of a work file, which may end in a torn one."""
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def high_labels(samples: list[Sample], work: Path, pool: Pool, seed: int) -> dict[str, dict[str, Any]]:
    """Label all samples meant for the high level, each as soon as a process is free."""
    path = work / "high.jsonl"
    wanted = {sample.key: sample.atoms.positions for sample in samples if sample.high}
    done = {
        line["key"]: line
        for line in lines_of(path)
        if line["key"] in wanted and np.array_equal(line["positions"], wanted[line["key"]])
    }
    jobs = [
        (sample, i % CHECK_EVERY == 0, seed + i)
        for i, sample in enumerate(s for s in samples if s.high)
        if sample.key not in done
    ]
    with path.open("a") as file:
        file.write("\n")  # ends a torn line
        for line in pool.imap_unordered(label_high, jobs):
            file.write(json.dumps(line) + "\n")
            file.flush()
            done[line["key"]] = line
            print(f"\r{len(done)}/{len(wanted)} at the high level", end="", flush=True)
    print()
    return done


def structures_of(formula: str, samples: list[Sample], labels: dict[str, dict[str, Any]]) -> Structures:
    """Gather one formula's structures."""
    numbers = np.concatenate([sample.atoms.numbers for sample in samples])
    absent: dict[str, Any] = {"energy": np.nan}
    high = [labels.get(sample.key, absent) for sample in samples]
    forces = [
        np.stack([sample.forces, line.get("forces", np.full_like(sample.forces, np.nan))], axis=1)
        for sample, line in zip(samples, high, strict=True)
    ]
    return Structures(
        numbers=numbers,
        positions=np.concatenate([sample.atoms.positions for sample in samples]),
        offsets=np.cumsum([0] + [len(sample.atoms) for sample in samples]),
        levels=np.array(sorted(METHODS)),
        energies=np.array([[s.energy, line["energy"]] for s, line in zip(samples, high, strict=True)]),
        forces=np.concatenate(forces),
        ids=np.array([f"{formula}/{i + 1}" for i in range(len(samples))]),
        names=np.array([sample.name for sample in samples]),
        temperatures=np.array([sample.temperature for sample in samples]),
    )


def report(formula: str, structures: Structures) -> None:
    """Print a row of the README's table; ranges in eV."""
    both = np.isfinite(structures.energies).all(axis=1)
    spans = np.nanmax(structures.energies, axis=0) - np.nanmin(structures.energies, axis=0)
    names, counts = np.unique(structures.names[both], return_counts=True)
    listed = ", ".join(f"`{name}` {count}" for name, count in zip(names, counts, strict=True))
    print(f"| `{formula}.db` | {both.sum()} | {(~both).sum()} | {spans[0]:.2f} | {spans[1]:.2f} | {listed} |")


def checks(samples: list[Sample], labels: dict[str, dict[str, Any]], seed: int) -> None:
    """Print the worst figures of the gradients' checks."""
    nets = [np.abs(sample.forces.sum(axis=0)).max() for sample in samples]
    slopes = []
    for i, sample in enumerate(samples[::CHECK_EVERY]):
        calc = gfn1(sample.multiplicity)
        slopes.append(central_difference(sample.atoms, calc.get_potential_energy, sample.forces, seed + i))
    print(f"low level: net force {max(nets):.1e} of {len(nets)}, slope {max(slopes):.1e} of {len(slopes)}")
    good = labels.values()
    nets = [np.abs(np.sum(line["forces"], axis=0)).max() for line in good]
    slopes = [line["check"] for line in good if "check" in line]
    print(f"high level: net force {max(nets):.1e} of {len(nets)}, slope {max(slopes):.1e} of {len(slopes)}")
    print(f"largest excess of <S^2>: {max(line['s2_excess'] for line in good):.3f}")


def start_process() -> None:
    """Keep a process to one thread."""
    lib.num_threads(1)


def main() -> None:
    """Run all stages, each going on from the work directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--work", type=Path, required=True, help="directory of the resumable state")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    options = parser.parse_args()
    work, seed = options.work, options.seed
    work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes spawned now
    with multiprocessing.get_context("spawn").Pool(options.processes, start_process) as pool:
        missing = [(name, work, seed) for name in POINTS if not (work / f"{name}.xyz").exists()]
        pool.starmap(find_anchor, missing, chunksize=1)
        jobs = [(group, seed + i) for i, group in enumerate(groups(work))]
        drawn = pool.starmap(draw, jobs, chunksize=1)
        samples = [sample for part, _ in drawn for sample in part]
        lost = sum((part for _, part in drawn), Counter[str]())
        print(f"{len(samples)} structures drawn; draws not kept: {dict(lost)}")
        lines = high_labels(samples, work, pool, seed)
    write_all(options.out, work, samples, lines, seed)


def write_all(out: Path, work: Path, samples: list[Sample], lines: dict[str, dict[str, Any]], seed: int) -> None:
    """Write the databases and the stationary points, and print what they hold."""
    failed = {key for key, line in lines.items() if "failed" in line}
    labels = {key: line for key, line in lines.items() if key not in failed}
    kept = [sample for sample in samples if sample.key not in failed]
    out.mkdir(parents=True, exist_ok=True)
    for formula in dict.fromkeys(point.formula for point in POINTS.values()):
        own = [sample for sample in kept if sample.atoms.get_chemical_formula() == formula]
        structures = structures_of(formula, own, labels)
        write_database(out / f"{formula}.db", structures, METHODS)
        report(formula, structures)
    write(out / "stationary_points.extxyz", [anchor for name in POINTS for anchor in read_all(work, name)])
    print(f"dropped, not converged: {len(failed)} {sorted(failed)}")
    checks(kept, labels, seed)
    print(f"{sum(file.stat().st_size for file in out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
