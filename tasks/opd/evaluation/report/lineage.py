"""A run as the store has it: its rounds, each with the artifacts behind its checkpoint, and its evaluations."""
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks.opd.core.costs import TRAINED, summed
from tasks.opd.evaluation import reports
from tasks.opd.evaluation.cell_costs import ROUND
from tasks.opd.store import run_records
from tasks.opd.store.artifacts import Artifact, place, read_record

DONE, FAILED, STOPPED, RUNNING = "done", "failed", "stopped", "running"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A finished stage."""
    path: Path
    record: dict                            # its artifact.json

    @property
    def artifact(self) -> Artifact:
        return Artifact.from_json(self.record)

    @property
    def kind(self) -> str:
        return self.record["kind"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A finished round: its checkpoint and what that was made from."""
    index: int                              # from 0
    checkpoint: Stage
    stages: list[Stage]                     # of `cell_costs.ROUND`, the checkpoint first, back to the rollouts
    trained_tokens: int                     # of this run up to its end
    seconds: float                          # of making, up to its end
    spent: dict[str, int] = field(default_factory=dict)     # tokens by name of costs, up to its end

    def last(self, *kinds: str) -> Stage | None:
        """The stage of these kinds that is nearest to the checkpoint."""
        return next((stage for stage in self.stages if stage.kind in kinds), None)

    def scores(self) -> dict[str, Stage]:
        """The teachers' signals by model name."""
        by_place = {stage.path: stage for stage in self.stages}
        given = {name.removeprefix("scores:"): Artifact.from_json(entry).path
                 for name, entry in self.checkpoint.record["inputs"].items() if name.startswith("scores:")}
        return {name: by_place[path] for name, path in given.items() if path in by_place}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A student's graded answers on a benchmark."""
    benchmark: str
    step: int                               # rounds finished: 0 at the start
    report: Stage
    divergence: Stage | None                # to the teacher, on these answers

    def rewards(self) -> dict[str, float]:
        """Mean reward by prompt."""
        return reports.rewards(self.report.artifact)

    def reverse_kl(self) -> float | None:
        """Mean reverse KL to the teacher, nats a token of the answers; None where it was not measured."""
        return reports.divergence_of(self.divergence.artifact) if self.divergence else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """A run: what it was asked, what it has made, and how it ended."""
    name: str
    suite: str
    recipe: dict[str, Any]
    state: str                              # DONE, FAILED, STOPPED, RUNNING
    error: str                              # of one that failed
    findings: list[str]                     # what rules found in its rounds, in words
    rounds: list[Round]
    evaluations: list[Evaluation]           # in the order of their steps
    others: list[Stage]                     # models, prompts and preflight

    @property
    def variant(self) -> str:
        return self.recipe["name"]

    @property
    def seed(self) -> int:
        return self.recipe["seed"]

    def benchmarks(self) -> list[str]:
        """Names, in the recipe's order."""
        return [one["name"] for one in self.recipe["benchmarks"]]

    def on(self, benchmark: str) -> list[Evaluation]:
        """The evaluations on a benchmark, from the start on."""
        return [one for one in self.evaluations if one.benchmark == benchmark]

    def ends(self, benchmark: str) -> tuple[Evaluation | None, Evaluation | None]:
        """The evaluation before training, and that of the last checkpoint; None where they are not there."""
        by_step = {one.step: one for one in self.on(benchmark)}
        last = self.rounds[-1].index + 1 if self.rounds else -1
        return by_step.get(0), by_step.get(last)


def read(file: Path) -> Lineage:
    """The run of a file of `run_records`. Raises CorruptArtifact where the file or an artifact's record is damaged."""
    version = run_records.version_of(file)
    run, record = read_version(file, version), run_records.read(file, version)
    return replace(run, state=state_of(record, run.error))  # of a file that stays as it is the run may die


@functools.lru_cache(maxsize=256)
def read_version(file: Path, version: tuple[int, int, int]) -> Lineage:
    """The run in a file of this version: a suite's page is made anew after every cell, and few of its runs change."""
    record, lines = run_records.read(file, version), file.read_bytes().split(b"\n")[:-1]
    about, *rest = map(json.loads, lines)
    errors = [line["failed"] for line in rest if "failed" in line]
    stages = [stage for key in record.artifacts if (stage := stage_at(*key))]
    return Lineage(name=record.name, suite=record.suite, recipe=about["recipe"], state=RUNNING,
                   error=errors[-1] if errors else "", findings=[told(line["finding"]) for line in rest
                                                                 if "finding" in line],
                   rounds=rounds_of([stage for stage in stages if stage.kind == "checkpoint"]),
                   evaluations=evaluations_of(stages),
                   others=[stage for stage in stages if stage.kind in ("model", "prompts", "preflight")])


def told(finding: dict) -> str:
    """A finding in words."""
    return f"after round {finding['rounds']}, {finding['rule']}: {finding['text']}"


def state_of(record: run_records.RunRecord, error: str) -> str:
    """How a run stands."""
    if record.finished:
        return DONE
    return FAILED if error else RUNNING if run_records.is_at_work(record) else STOPPED


def stage_at(kind: str, fingerprint: str) -> Stage | None:
    """A finished stage; None where it was not made, or is gone."""
    path = place(kind, fingerprint)
    record = read_record(path)
    return Stage(path=path, record=record) if record else None


def rounds_of(checkpoints: list[Stage]) -> list[Round]:
    """The rounds by index, with what was spent up to each; of a round that was trained again the last."""
    found, tokens, seconds, counts = [], 0, 0.0, []
    for index, checkpoint in sorted({one.record["spec"]["round"]: one for one in checkpoints}.items()):
        stages = list(behind(checkpoint))
        tokens += checkpoint.record["counts"].get(TRAINED, 0)
        seconds += sum(stage.record.get("seconds") or 0.0 for stage in stages)
        counts += [(stage.kind, stage.record["counts"]) for stage in stages]
        found.append(Round(index=index, checkpoint=checkpoint, stages=stages, trained_tokens=tokens, seconds=seconds,
                           spent=summed(counts)))
    return found


def behind(checkpoint: Stage) -> Iterator[Stage]:
    """A checkpoint and the stages of its own round, each once, from the checkpoint back."""
    waiting, seen = [checkpoint], set()
    while waiting:
        stage = waiting.pop(0)
        yield stage
        for entry in stage.record["inputs"].values():
            key = entry["kind"], entry["fingerprint"]
            if entry["kind"] in ROUND and entry["kind"] != "checkpoint" and key not in seen:
                seen.add(key)
                waiting += filter(None, [stage_at(*key)])


def evaluations_of(stages: list[Stage]) -> list[Evaluation]:
    """Every report with its divergence, by benchmark and step."""
    measured = {stage.record["inputs"]["report"]["fingerprint"]: stage for stage in stages
                if stage.kind == "divergence"}
    found = [Evaluation(benchmark=stage.record["spec"]["benchmark"]["name"], step=step_of(stage), report=stage,
                        divergence=measured.get(stage.record["fingerprint"]))
             for stage in stages if stage.kind == "report"]
    return sorted(found, key=lambda one: one.step)


def step_of(report: Stage) -> int:
    """Rounds that the student of a report had finished: 0 for a model that no round has trained."""
    student = report.record["inputs"]["student"]
    made = stage_at(student["kind"], student["fingerprint"]) if student["kind"] == "checkpoint" else None
    return made.record["spec"]["round"] + 1 if made else 0
