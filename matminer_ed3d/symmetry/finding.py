"""The space group of a density, with the proof: :func:`find_symmetry`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Complex, Float, Int

from matminer_ed3d import labels
from matminer_ed3d._spglib import call_spglib
from matminer_ed3d.density import Density
from matminer_ed3d.reduction import PRIMES, sublattice_directions
from matminer_ed3d.symmetry import operations
from matminer_ed3d.symmetry.evidence import Evidence, Operation, Traces
from matminer_ed3d.symmetry.groups import (
    GroupType,
    exact_translations,
    group_type,
    key_of,
    maximal_subgroups,
    periodic_distance,
    type_numbers,
)
from matminer_ed3d.symmetry.spectrum import Spectrum, spectrum_of

__all__ = ["Candidate", "DensitySymmetry", "find_symmetry"]

DEFAULT_SYMPREC = 0.01
# Relation of `symprec` to what is measured, fitted on structures of the Materials Project against spglib at the same `symprec`:
DISPLACEMENT_PER_SYMPREC = 0.95  # spglib fixes the translation on one atom; here it is the best one for all
LARGEST_SCATTERING_DIFFERENCE = 0.0085  # neighbours in the periodic table differ by at least 0.0102
LENIENCE = 3.0  # for the largest displacement where there is noise, and the odds decide beside it
PRIOR_LOG_ODDS = 4.0  # of "holds": of the operations that the data do not contradict, one in some hundred is broken by less than shows
PRIOR_LOG_ODDS_OF_TRANSLATION = 1.0  # ordered superstructures are more common than cells given too large
TEMPERATURE = 1.0  # by which log weights of candidates are divided; fitted on answers that were known
PRECISE_SLOPE = 8.0  # log odds per e-fold of displacement beyond or below the tolerance
MEANS_ARE_KNOWN_TO = 0.1  # of the spacing: means over voxels that do not repeat under a symmetry hide displacements below
CLOSING_DISTANCE = 0.4  # Å; translations of one rotation that agree within it are the same operation, seen through noise
SAME_PEAK = 0.1  # Å; peaks of a correlation that are nearer are one
TRANSLATION_SHARE = 0.02  # of the power that may contradict a translation for it to be looked at
N_RUNNERS_UP = 6


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group that the density may have.

    Parameters
    ----------
    space_group_number : int
    symbol : str
        Short Hermann-Mauguin symbol.
    relation : {"found", "subgroup", "supergroup"}
        To the group that was found: itself, a maximal subgroup, a minimal supergroup.
    n_operations : int
        In the primitive cell.
    log_evidence : float
        Log odds of the found group against this one, the prior included, in nats; positive where the found one is the better.
    displacement, scattering_difference : float
        The worst of the operations by which the two groups differ, Å and relative.
    probability : float
        Among the candidates of the list.
    """

    space_group_number: int
    symbol: str
    relation: str
    n_operations: int
    log_evidence: float
    displacement: float
    scattering_difference: float
    probability: float


@dataclass(frozen=True, eq=False)
class DensitySymmetry:
    """What :func:`find_symmetry` finds: a space group and its proof.

    Parameters
    ----------
    lattice : (3, 3) float
        Rows in Å: the Niggli-reduced primitive cell of the density, in the density's own orientation and origin.
    basis : (3, 3) float
        Its rows in the basis of the given cell: ``lattice = basis @ given_lattice``.
    operations : tuple of Operation
        The group in that cell, translations exact, the identity first.
    rejected : tuple of Operation
        The best of every other rotation that the lattice allows and the density nearly has, the smallest residual first.
    group : GroupType
        The space group's names, and the way to its standard setting from the primitive cell.
    candidates : tuple of Candidate
        The group found, its maximal subgroups and its minimal supergroups; the most probable first.
    noise : float
        Power of the noise over that of the density without its mean.
    d_min : float
        Resolution that was looked at, Å.
    symprec : float
        Largest displacement that counts as symmetry, Å.
    """

    lattice: Float[np.ndarray, "3 3"]
    basis: Float[np.ndarray, "3 3"]
    operations: tuple[Operation, ...]
    rejected: tuple[Operation, ...]
    group: GroupType
    candidates: tuple[Candidate, ...]
    noise: float
    d_min: float
    symprec: float

    @property
    def space_group_number(self) -> int:
        """1 to 230."""
        return self.group.number

    @property
    def extinction_group(self) -> int:
        """1 to 101; see :mod:`matminer_ed3d.labels`."""
        return int(labels.extinction_group(self.group.number))

    @property
    def crystal_system(self) -> str:
        """Lower-case name, triclinic to cubic."""
        return labels.crystal_system(self.group.number)

    @property
    def centring(self) -> str:
        """Letter of the lattice in the standard setting: P, A, C, I, F or R."""
        return self.group.symbol[0]

    @property
    def probability(self) -> float:
        """Of the group that was found."""
        return next(c.probability for c in self.candidates if c.relation == "found")

    @property
    def transformation(self) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
        """P and p of ``x_standard = P @ x + p`` for fractional coordinates x (columns) of the given cell."""
        return self.group.transformation @ np.linalg.inv(self.basis).T, self.group.origin_shift

    def space_group_proba(self) -> Float[np.ndarray, "230"]:
        """Probability of each space group, 1 to 230."""
        proba = np.zeros(230)
        for candidate in self.candidates:
            proba[candidate.space_group_number - 1] += candidate.probability
        return proba


class _Search:
    """The evidence of one primitive cell, and the operations that were tested, each once."""

    def __init__(self, spectrum: Spectrum, symprec: float) -> None:
        self.spectrum = spectrum
        self.evidence = Evidence(spectrum, symprec)
        self.symprec = symprec
        self.tested: dict[bytes, list[tuple[Operation, Complex[np.ndarray, " n_refl"]]]] = {}

    def holds(self, operation: Operation, prior: float = PRIOR_LOG_ODDS) -> bool:
        tolerance = DISPLACEMENT_PER_SYMPREC * self.symprec * (1.0 if self.evidence.is_precise else LENIENCE)
        return bool(
            operation.displacement <= tolerance
            and operation.scattering_difference <= LARGEST_SCATTERING_DIFFERENCE
            and operation.log_evidence <= prior
        )

    def test(self, rotation: np.ndarray, translation: np.ndarray) -> tuple[Operation, np.ndarray]:
        """Test an operation, or return the one that was tested nearby."""
        known = self.tested.setdefault(key_of(rotation), [])
        for operation, image in known:
            if periodic_distance(operation.translation, translation, self.spectrum.lattice) <= CLOSING_DISTANCE:
                return self.examined(operation), image
        entry = self.evidence.test(rotation, translation)
        known.append(entry)
        return entry

    def examined(self, operation: Operation) -> Operation:
        """Look closely at an operation that was compared, once."""
        known = self.tested[key_of(operation.rotation)]
        place = next(i for i, (entry, _) in enumerate(known) if entry.translation is operation.translation)
        entry, image = known[place]
        known[place] = self.evidence.examined(entry, image), image
        return known[place][0]

    def candidates(self) -> list[Operation]:
        """Compare the density with its image at every peak of every rotation that the lattice allows; the smallest residual first."""
        for rotation in operations.lattice_operations(self.spectrum.lattice, self.symprec):
            rows = self.spectrum.images(rotation)
            if (rotation == np.eye(3)).all():
                continue
            peaks = operations.correlation_peaks(self.spectrum, rows)
            if not len(peaks):
                continue
            known = self.tested.setdefault(key_of(rotation), [])
            for peak, refined in zip(peaks, operations.refined_translations(self.spectrum, rows, peaks), strict=True):
                if all(periodic_distance(entry[0].translation, peak, self.spectrum.lattice) > SAME_PEAK for entry in known):
                    known.append(self.evidence.compared(rotation, refined))
        entries = [operation for known in self.tested.values() for operation, _ in known]
        return sorted(entries, key=lambda operation: operation.residual)


Members = dict[bytes, tuple[Operation, np.ndarray]]


def _closed(search: _Search, members: Members, operation: Operation, needs_all: bool) -> Members | None:
    """Add an operation to a group and close it; None if it does not close, or (`needs_all`) a product does not hold."""
    lattice = search.spectrum.lattice
    entry = search.test(operation.rotation, operation.translation)
    made = {**members, key_of(operation.rotation): entry}
    generators = [entry[0], *(member for member, _ in members.values())]
    waiting = [entry[0]]
    while waiting:
        first = waiting.pop()
        for second in generators:
            rotation = second.rotation @ first.rotation
            translation = (second.rotation @ first.translation + second.translation) % 1.0
            key = key_of(rotation)
            if key in made:
                if periodic_distance(translation, made[key][0].translation, lattice) > CLOSING_DISTANCE:
                    return None
                continue
            if operations.metric_distance(rotation, lattice) > search.symprec:
                return None
            product = search.test(rotation, translation)
            if periodic_distance(product[0].translation, translation, lattice) > CLOSING_DISTANCE:
                return None  # refined to another peak
            if needs_all and not search.holds(product[0]):
                return None
            made[key] = product
            waiting.append(product[0])
    return made


def _descend(search: _Search, members: Members) -> tuple[Members, list[tuple[tuple[int, ...], float]]]:
    """Give up what the mean over a subgroup contradicts; return the group that is left and the odds of its maximal subgroups."""
    while len(members) > 1:
        entries = list(members.values())
        images = np.array([image for _, image in entries])
        mean = images.mean(axis=0)
        traces = [search.evidence.traces(operation.rotation, operation.translation) for operation, _ in entries]
        freedom = Traces.mean(traces)
        odds = []
        for subgroup in maximal_subgroups(np.array([operation.rotation for operation, _ in entries])):
            rows = list(subgroup)
            difference = images[rows].mean(axis=0) - mean
            degrees = Traces.mean([traces[i] for i in rows]) - freedom
            odds.append((subgroup, search.evidence.log_odds(difference, degrees, len(rows))))
        worst = max(odds, key=lambda pair: pair[1])
        if search.evidence.is_precise or worst[1] <= PRIOR_LOG_ODDS:
            return members, odds
        kept = set(worst[0])
        members = {key: entry for i, (key, entry) in enumerate(members.items()) if i in kept}
    return members, []


def _primitive(spectrum: Spectrum, symprec: float) -> tuple[Spectrum, np.ndarray]:
    """Find the primitive cell: divide the cell by every translation that holds, then reduce it (Niggli)."""
    basis = np.eye(3)
    while True:
        rows = _dividing(spectrum, symprec)
        if rows is None:
            break
        spectrum, basis = spectrum.in_basis(rows), rows @ basis
    reduced = call_spglib("niggli_reduce", spectrum.lattice, eps=1e-5)
    if reduced is None:
        raise ValueError(
            f"the lattice {np.round(spectrum.lattice, 4).tolist()} cannot be Niggli-reduced; check that its vectors span a volume"
        )
    change = np.round(np.asarray(reduced) @ np.linalg.inv(spectrum.lattice))
    if np.linalg.det(change @ spectrum.lattice) < 0:
        change = -change
    return spectrum.in_basis(change), change @ basis


def _dividing(spectrum: Spectrum, symprec: float) -> Float[np.ndarray, "3 3"] | None:
    """Rows of a smaller cell that a translation makes, or None if the cell is primitive."""
    power = np.maximum(np.abs(spectrum.coefficients) ** 2 - spectrum.noise, 0)
    total = float(power.sum())
    strongest = np.argsort(-power)[:200]
    search = None
    for prime in PRIMES:
        directions = sublattice_directions(prime)
        broken = (spectrum.h[strongest] @ directions.T) % prime != 0
        directions = directions[power[strongest] @ broken <= TRANSLATION_SHARE * total]
        for direction in directions:
            if power @ ((spectrum.h @ direction) % prime != 0) > TRANSLATION_SHARE * total:
                continue
            search = search or _Search(spectrum, symprec)
            operation, _ = search.evidence.test(np.eye(3, dtype=np.int64), direction / prime)
            if search.holds(operation, PRIOR_LOG_ODDS_OF_TRANSLATION):
                rows = np.eye(3)
                rows[np.flatnonzero(direction)[0]] = direction / prime
                return rows
    return None


def _margin(operations_: list[Operation], symprec: float) -> float:
    """How far, as a logarithm, the worst of some operations is beyond what counts as symmetry; negative if all hold."""
    worst = max(
        max(o.displacement / (DISPLACEMENT_PER_SYMPREC * symprec), o.scattering_difference / LARGEST_SCATTERING_DIFFERENCE, 1e-6)
        for o in operations_
    )
    return float(np.log(worst))


def _runners_up(
    search: _Search, members: Members, subgroups: list[tuple[tuple[int, ...], float]], rejected: list[Operation]
) -> list[tuple[str, Members, float, list[Operation]]]:
    """Maximal subgroups and minimal supergroups: relation, members, evidence for the found group against it, deciding operations.

    The prior probability that the group is smaller is shared by all maximal subgroups, and so is that of the supergroups: one broken
    operation speaks for every subgroup without it, and must not count as often as there are such.
    """
    entries = list(members.items())
    out = []
    for subgroup, odds in subgroups:
        kept = {entries[i][0]: entries[i][1] for i in subgroup}
        deciding = [entry[0] for key, entry in members.items() if key not in kept]
        evidence = -PRECISE_SLOPE * _margin(deciding, search.symprec) if search.evidence.is_precise else PRIOR_LOG_ODDS - odds
        out.append(("subgroup", kept, evidence, deciding))
    seen: set[frozenset[bytes]] = set()
    for operation in rejected[:N_RUNNERS_UP]:
        larger = _closed(search, members, operation, needs_all=False)
        if larger is None or frozenset(larger) in seen:
            continue
        seen.add(frozenset(larger))
        deciding = [entry[0] for key, entry in larger.items() if key not in members]
        if search.evidence.is_precise:
            evidence = PRECISE_SLOPE * _margin(deciding, search.symprec)
        else:
            means = [np.mean([image for _, image in group.values()], axis=0) for group in (members, larger)]
            left = [
                Traces.mean([search.evidence.traces(o.rotation, o.translation) for o, _ in group.values()]) for group in (members, larger)
            ]
            evidence = search.evidence.log_odds(means[0] - means[1], left[0] - left[1], len(members))
            evidence = max(evidence, max(o.log_evidence for o in deciding)) - PRIOR_LOG_ODDS
        out.append(("supergroup", larger, evidence, deciding))
    counts = Counter(relation for relation, *_ in out)
    return [(relation, kept, evidence + float(np.log(counts[relation])), deciding) for relation, kept, evidence, deciding in out]


def _arrays_of(members: Members) -> tuple[Int[np.ndarray, "n 3 3"], Float[np.ndarray, "n 3"]]:
    """Rotations and exact translations of a group."""
    rotations = np.array([operation.rotation for operation, _ in members.values()])
    return rotations, exact_translations(rotations, np.array([operation.translation for operation, _ in members.values()]))


def find_symmetry(
    density: Density, *, symprec: float = DEFAULT_SYMPREC, channel: str = "total", d_min: float | None = None
) -> DensitySymmetry:
    """Find the space group of a density from the density alone, and prove it.

    Parameters
    ----------
    density : Density
        In any cell: primitive, conventional, doubled, skewed; from any origin.
    symprec : float
        Largest displacement in Å that still counts as symmetry, as spglib's. An atom displaced by u makes the difference
        -u.grad(rho); the largest such displacement that an operation's difference can be read as must stay below 0.95 `symprec`.
        At least a tenth of the grid's spacing for voxel means, which hide what is smaller.
    channel : str
        Whose symmetry is asked for.
    d_min : float, optional
        Resolution in Å; by default 1 Å, finer in small cells and under noise, and what the grid holds.

    Returns
    -------
    DensitySymmetry

    Raises
    ------
    ValueError
        If the density is constant or the lattice cannot be reduced.

    Notes
    -----
    Primitive cell by testing translations; rotations of its lattice; translations by correlation (one Fourier transform for each
    rotation, O(n_rotations N log N) for N grid points); each operation tested as :mod:`matminer_ed3d.symmetry.evidence` says; closed
    into a group, whose maximal subgroups are then asked whether they explain the density better than noise.

    Where noise is so small that every atom's displacement is known to a third of `symprec`, displacements decide alone; else the odds do.
    """
    if density.is_voxel_mean:
        symprec = max(symprec, MEANS_ARE_KNOWN_TO * float(density.grid_spacing.max()))
    spectrum, basis = _primitive(spectrum_of(density, channel, d_min), symprec)
    search = _Search(spectrum, symprec)
    identity = np.eye(3, dtype=np.int64)
    members: Members = {key_of(identity): search.test(identity, np.zeros(3))}
    ranked = search.candidates()
    for operation in ranked:
        if key_of(operation.rotation) not in members and search.holds(search.examined(operation)):
            members = _closed(search, members, operation, needs_all=True) or members
    members, subgroups = _descend(search, members)
    best: dict[bytes, Operation] = {}
    for operation in ranked:
        if key_of(operation.rotation) not in members:
            best.setdefault(key_of(operation.rotation), operation)
    rejected = sorted((search.examined(operation) for operation in best.values()), key=lambda o: o.residual)
    rotations, translations = _arrays_of(members)
    group = group_type(spectrum.lattice, rotations, translations)
    held = tuple(
        replace(operation, translation=translation) for (operation, _), translation in zip(members.values(), translations, strict=True)
    )
    runners = _runners_up(search, members, subgroups, rejected)
    weights = np.array([0.0] + [-evidence for *_, evidence, _ in runners]) / TEMPERATURE
    probabilities = np.exp(weights - np.logaddexp.reduce(weights))
    named = [("found", members, 0.0, [o for o in held[1:]] or [held[0]]), *runners]
    candidates = []
    for (relation, group_members, evidence, deciding), probability in zip(named, probabilities, strict=True):
        is_found = relation == "found"
        number, symbol = (group.number, group.symbol) if is_found else type_numbers(spectrum.lattice, *_arrays_of(group_members))
        candidates.append(
            Candidate(
                number,
                symbol,
                relation,
                len(group_members),
                evidence,
                max(o.displacement for o in deciding),
                max(o.scattering_difference for o in deciding),
                float(probability),
            )
        )
    power = float((np.abs(spectrum.coefficients) ** 2).sum())
    return DensitySymmetry(
        lattice=spectrum.lattice,
        basis=basis,
        operations=held,
        rejected=tuple(rejected),
        group=group,
        candidates=tuple(sorted(candidates, key=lambda c: -c.probability)),
        noise=spectrum.noise * len(spectrum.h) / power,
        d_min=float(1 / spectrum.q_length.max()),
        symprec=symprec,
    )
