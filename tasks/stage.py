"""run_stage(): reuse an artifact made from the same things, or have a worker make it.

An artifact is reused when its files are those that were written and its recorded inputs are those of now, by digest; so
an artifact that was remade with other bytes takes its descendants with it, and one with the same bytes does not. A
damaged, retired or missing input is remade from its own derivation, but only when a stage has to read it; of scores
whose hidden states were retired only these. While a stage reads its inputs, nobody removes them (`leased`).
"""
import contextlib
import itertools
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tasks.opd.core.errors import CorruptArtifact, EngineLost
from tasks.opd.core.progress import print_line
from tasks.opd.engines.pool import is_served
from tasks.opd.recipe import budgets, derivations
from tasks.opd.recipe.checks import recipes, schedules
from tasks.opd.recipe.schema import Recipe
from tasks.opd.runtime.stages import entry_of
from tasks.opd.store import artifacts, disk, fingerprints, hidden_states, run_records
from tasks.opd.store.artifacts import Artifact
from tasks.workers.pools import WorkerPool

Inputs = dict[str, Artifact]


def run_stage(stage: str, spec: dict, inputs: Inputs, pool: WorkerPool) -> Artifact:
    """The artifact of `stage` for this spec and these inputs; made by the pool when it is not there.

    The whole spec reaches the stage; what may not change the result (`effort`, batch sizes) is outside the fingerprint.
    Raises: what the stage raises (OpdError with its exit code), DiskFull, EngineLost when the worker or its engine
    died, hung or ran out of memory twice.
    """
    inputs = {name: current(artifact) for name, artifact in inputs.items()}
    kind, fingerprint = kind_of(stage), fingerprint_of(stage, spec, inputs)
    pool.derivations[kind, fingerprint] = stage, spec, inputs
    artifact, reused = obtain(kind, fingerprint, pool)
    pool.reused += reused
    return artifact


def prune(checkpoints: list[Artifact], keep: int = 2) -> None:
    """Retire all but the last `keep` of a run's checkpoints, given from old to new: records stay, weights go.

    Only the last one keeps its optimizer's state: training goes on from no other.
    """
    for artifact in checkpoints[:max(len(checkpoints) - keep, 0)]:
        artifacts.retire(artifact)
    for artifact in checkpoints[-keep:-1]:
        artifacts.retire(artifact, (artifacts.STATE,))


def kind_of(stage: str) -> str:
    """The folder of a stage's artifacts: its name, or the function's where it is given as package.module:function."""
    return stage.rpartition(":")[2]


def fingerprint_of(stage: str, spec: dict, inputs: Inputs) -> str:
    """What names the artifact that `stage` would make here and now."""
    served = any(is_served(artifact.path / "model") for artifact in inputs.values())
    source = derivations.source_of(entry_of(stage), spec, {"server"} if served else ())
    return fingerprints.fingerprint(
        stage, derivations.result_settings(spec), {name: artifact.fingerprint for name, artifact in inputs.items()},
        source=source, environment=fingerprints.environment(spec))


def current(artifact: Artifact) -> Artifact:
    """The reference as it stands on disk: the digest is another when the artifact was remade since."""
    try:
        return artifacts.find(artifact.kind, artifact.fingerprint) or artifact
    except CorruptArtifact:
        return artifact


def usable(kind: str, fingerprint: str) -> Artifact | None:
    """The artifact when it is there, undamaged and made from its inputs as they are now; None, with a word, otherwise.

    Whoever asks holds its lock: what is damaged is moved aside; what is outdated stays until its successor is there.
    """
    path = artifacts.place(kind, fingerprint)
    try:
        record = artifacts.read_record(path)
        if record is None:
            return None
        if names := outdated(record):
            log_line(f"{kind} {fingerprint[:8]} was made from another {', '.join(names)}; it is made again")
            return None
        artifact = artifacts.find(kind, fingerprint)
        artifacts.verify(artifact)
        return artifact
    except CorruptArtifact as error:
        log_line(f"damaged {kind} {fingerprint[:8]}: {error}; moved to {artifacts.set_aside(path)}")
        return None


def outdated(record: dict) -> list[str]:
    """The names of the inputs that have other bytes now than when the artifact was made."""
    return [name for name, entry in record["inputs"].items()
            if current(Artifact.from_json(entry)).digest != entry["digest"]]


def obtain(kind: str, fingerprint: str, pool: WorkerPool, *, to_read: bool = False,
           with_state: bool = False) -> tuple[Artifact, bool]:
    """An artifact whose derivation the pool knows, and whether it was there; a retired one will do unless read."""
    stage, spec, inputs = pool.derivations[kind, fingerprint]
    run_records.refer(kind, fingerprint)
    with artifacts.lock(kind, fingerprint):
        artifact = usable(kind, fingerprint)
        if artifact and not (to_read and artifacts.is_retired(artifact, with_state=with_state)):
            return artifact, True
        with leased(inputs, pool, with_state=kind == "checkpoint") as ready:
            return make_files(stage, spec, ready, fingerprint, pool, artifact), False


@contextlib.contextmanager
def leased(inputs: Inputs, pool: WorkerPool, with_state: bool = False) -> Iterator[Inputs]:
    """Inputs as a stage may read them, made again where they must be; as long as this is open nobody removes them.

    `with_state`: a checkpoint among them is trained on from, so that its optimizer's state is read too.
    Under leases a run waits for the readers of what it replaces, never for its makers; so two runs do not wait for each
    other.
    """
    while True:
        ready = {name: readable(artifact, pool, with_state) for name, artifact in inputs.items()}
        with contextlib.ExitStack() as leases:
            for artifact in ready.values():
                leases.enter_context(artifacts.lease(artifact.kind, artifact.fingerprint))
            if all(is_readable(artifact, with_state) for artifact in ready.values()):
                yield ready
                return


def is_readable(artifact: Artifact, with_state: bool) -> bool:
    """Whether an artifact's files are there, and still those of the reference."""
    there = current(artifact).digest == artifact.digest and artifact.path.exists()
    return there and not artifacts.is_retired(artifact, with_state=with_state)


def make_files(stage: str, spec: dict, inputs: Inputs, fingerprint: str, pool: WorkerPool,
               retired: Artifact | None = None) -> Artifact:
    """Have the pool write the files of an artifact beside its place, and put it there; on any error nothing remains.

    Where a `retired` one stands there that lacks its hidden states only, these are put into it and the rest stays.
    """
    started, kind = time.monotonic(), kind_of(stage)
    folder = artifacts.begin(kind, fingerprint)
    try:
        made, attempts = write_files(stage, spec, inputs, folder, pool)
        if retired and lacks_only_hidden(retired):
            artifact = hidden_states.restore(retired, folder)
        else:
            artifact = artifacts.seal(folder, {
                "kind": kind, "fingerprint": fingerprint, "stage": stage, "spec": spec, **made,
                "attempts": attempts,
                "inputs": {name: {key: getattr(artifact, key) for key in ("kind", "fingerprint", "digest")}
                           for name, artifact in inputs.items()},
                **surroundings(spec),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - started, 3)})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    pool.made += 1
    log_made(pool, artifact, time.monotonic() - started)
    return artifact


def lacks_only_hidden(artifact: Artifact) -> bool:
    """Whether a retired artifact is whole but for hidden states, and made from its inputs as they are now."""
    record = artifacts.read_record(artifact.path)
    inside = not artifact.path.is_symlink()     # to another disk, perhaps another's
    return inside and hidden_states.are_all_that_lacks(artifact.path, record) and not outdated(record)


def surroundings(spec: dict) -> dict:
    """What a record says of the libraries and the machine."""
    environment = fingerprints.environment(spec)
    return {"versions": {**environment["versions"], "python": platform.python_version()},
            "environment": {"device": environment["device"], "machine": platform.machine(), "cores": os.cpu_count(),
                            "threads": os.environ.get("OMP_NUM_THREADS")}}


def write_files(stage: str, spec: dict, inputs: Inputs, folder: Path, pool: WorkerPool) -> tuple[dict, int]:
    """Have the pool write a stage's files: its counts and peak_memory_bytes, and in how many attempts.

    The second, after the worker or its engine was lost, is with half the batch; whatever the first left is removed.
    Raises: EngineLost when that one is lost too, naming what was tried.
    """
    places, (smaller, halves) = {name: str(artifact.path) for name, artifact in inputs.items()}, halved(spec)
    try:
        return pool.make(stage, spec, places, folder), 1
    except EngineLost as error:
        log_line(f"{str(error).splitlines()[0]}\nopd: {kind_of(stage)} is tried once more"
            f"{f' with half the batch: {halves}' if halves else ''}")
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        return pool.make(stage, smaller, places, folder), 2
    except EngineLost as error:
        with_half = f" and with half the batch ({halves})" if halves else ""
        raise EngineLost(f"{kind_of(stage)} was tried twice, as it was{with_half}, in vain. {error}") from error


def halved(spec: dict) -> tuple[dict, str]:
    """A copy of a spec that takes half as much at once, and what that is, in words; empty where it does not say."""
    smaller, changes = derivations.halved(spec)
    return smaller, ", ".join(f"{name} {change}" for name, change in changes.items())


def readable(artifact: Artifact, pool: WorkerPool, with_state: bool) -> Artifact:
    """An input that a stage is about to read: as it is, or remade when it is damaged, outdated, retired or gone."""
    kind, fingerprint = artifact.kind, artifact.fingerprint
    with artifacts.lock(kind, fingerprint):
        try:
            record = artifacts.read_record(artifact.path)
        except CorruptArtifact:
            record = None
        found = usable(kind, fingerprint)
    if found and not artifacts.is_retired(found, with_state=with_state):
        return found
    log_line(f"{kind} {fingerprint[:8]} is {'retired' if found else 'not there'} and needed: it is made again")
    if (kind, fingerprint) not in pool.derivations:
        pool.derivations[kind, fingerprint] = recorded_derivation(artifact, record)
    return obtain(kind, fingerprint, pool, to_read=True, with_state=with_state)[0]


def recorded_derivation(artifact: Artifact, record: dict | None) -> tuple[str, dict, Inputs]:
    """Stage, spec and inputs from an artifact's own record, when this run did not make or reuse it.

    Raises: CorruptArtifact without a record, or when code or libraries have changed since it was made.
    """
    if record is None:
        raise CorruptArtifact(f"{artifact.path} is gone and nothing says how it was made; run its flow again")
    inputs = {name: current(Artifact.from_json(entry)) for name, entry in record["inputs"].items()}
    if fingerprint_of(record["stage"], record["spec"], inputs) != artifact.fingerprint:
        raise CorruptArtifact(f"{artifact.path} cannot be remade: code or library versions have changed since; "
                              "run its flow again, which makes a new one")
    return record["stage"], record["spec"], inputs


def log_made(pool: WorkerPool, artifact: Artifact, seconds: float) -> None:
    """Report what was made: behind the bar of the rounds where there is one, else on a line with its counts."""
    described = ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.4g}"
                          for key, value in artifact.counts.items() if isinstance(value, int | float))
    if pool.bar is not None:
        pool.bar.set_postfix_str(f"{artifact.kind} {seconds:.1f} s", refresh=False)
    made = f"made {artifact.kind} {artifact.fingerprint[:8]} in {seconds:.1f} s"
    log_line(f"{made}: {described}" if described else made, to_person=pool.bar is None)


def rounds(recipe: Recipe, pool: WorkerPool, history: Sequence[dict]) -> Iterator[int]:
    """The indices of a run's rounds under one bar with ETA; with OPD_PROGRESS=0 every stage made has its own line.

    They end early when the recipe's budget is spent, by the `history` that grows with every round.
    """
    from tqdm import tqdm
    name, started = f"{recipe.name}, seed {recipe.seed}", time.monotonic()
    for note in recipes.notes(recipe, recipe.rounds):
        log_line(note)
    full, made = disk.warning(), pool.made  # said as the pool was opened
    with tqdm(range(recipe.rounds), desc=name, unit=" rounds", file=sys.stderr, delay=2,
              ncols=100, mininterval=0.5 if sys.stderr.isatty() else 10, ascii=not sys.stderr.isatty(), leave=False,
              disable=os.environ.get("OPD_PROGRESS") == "0") as bar:
        pool.bar = None if bar.disable else bar
        try:
            for index in itertools.takewhile(lambda _: not budgets.is_spent(recipe, history), bar):
                yield index
                full = full or pool.made > made and disk.warn(log_line)  # which measures the whole store
                made = pool.made
                pool.listener.stage_progress({"label": name, "done": index + 1, "total": recipe.rounds, "tokens": 0,
                                              "unit": "rounds", "seconds": time.monotonic() - started})
        finally:
            pool.bar = None
    if budgets.given(recipe):
        for note in schedules.never_held(recipe, len(history), history[:-1]) + budgets.told(recipe, history):
            log_line(note)


def log_line(text: str, *, to_person: bool = True) -> None:
    """One line to the person at the terminal and to the run's page; standard output belongs to results."""
    if to_person:
        print_line(f"opd: {text}")
    if "prefect" not in sys.modules:  # nobody runs a flow
        return
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger
    with contextlib.suppress(MissingContextError):  # not inside a flow
        get_run_logger().info(text)
