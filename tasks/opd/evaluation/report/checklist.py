"""The questions that every result is asked before it is believed, answered from a run's lineage."""
import json
from dataclasses import dataclass

import pyarrow.parquet as pq

from tasks.opd.core.costs import WRITTEN
from tasks.opd.core.records import DATASET, STUDENT, TEACHER, Quarantined, read_rows
from tasks.opd.evaluation.report.lineage import Lineage, Round, Stage
from tasks.opd.evaluation.report.prompts import shortened
from tasks.opd.evaluation.report.recipes import slot_text
from tasks.opd.store.artifacts import Artifact

FINE, LOOK, MISSING = "fine", "look", "missing"
DROPPED = (("rollouts", "quarantined.parquet"), ("grades", "dropped.parquet"), ("refined", "quarantined.parquet"))
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question."""
    question: str
    state: str                              # FINE, LOOK: somebody should, MISSING: nothing is known
    answer: str
    examples: list[str]


def checklist(run: Lineage, verdict: str, wrong: dict[str, tuple[int, int]]) -> list[Item]:
    """Every question in its order; `verdict` is on the held-out improvement, `wrong` how many of how many answers are
    wrong at the end, by benchmark."""
    return [teacher(run), prompt_schema(run), policy(run), filters(run), checkpoint(run), freshness(run),
            improvement(run, verdict), failures(run, wrong)]


def item(question: str, state: str, answer: str, examples: list[str] = ()) -> Item:
    return Item(question=question, state=state, answer=answer, examples=[*examples])


def short(artifact: Artifact) -> str:
    """An artifact by kind, fingerprint and digest."""
    return f"{artifact.kind} {artifact.fingerprint[:12]}, digest {artifact.digest[:12]}"


def teacher(run: Lineage) -> Item:
    """Which version taught, and what it saw."""
    asked, versions = run.recipe["teacher"], {}
    for one in run.rounds:
        for name, stage in one.scores().items():
            versions.setdefault(name, {})[stage.record["inputs"]["model"]["fingerprint"]] = stage
    told = [f"{name}: {short(Artifact.from_json(next(iter(stages.values())).record['inputs']['model']))}"
            + (f" and {len(stages) - 1} later versions of it" if stages.keys() - {*list(stages)[:1]} else "")
            for name, stages in versions.items()]
    if not told:
        return item("Teacher version", MISSING if not run.rounds else FINE, "No teacher scored a rollout.")
    return item("Teacher version", FINE, f"{'; '.join(told)}. In the recipe: teacher.model {asked['model']}, "
                f"teacher.refresh {slot_text(asked['refresh'])}, teacher.context {slot_text(asked['context'])}.")


def prompt_schema(run: Lineage) -> Item:
    """How questions become prompts, and one of them."""
    made = [stage for stage in run.others if stage.kind == "prompts"]
    templates = {one.report.path: template_of(one.report) for one in run.evaluations}
    if not made:
        return item("Prompt schema", MISSING, "No prompts were made.")
    hashes = sorted({text[:12] for text in templates.values() if text})
    said = f"chat template {', '.join(hashes)}" if hashes else "no chat template: the questions as they stand"
    made = [*{stage.path: stage for stage in made}.values()]
    counts = [f"{stage.record['counts'].get('prompts', 0):,} of {stage.record['spec'].get('name', '')}"
              for stage in made]
    dropped = sum(stage.record["counts"].get("quarantined", 0) for stage in made)
    return item("Prompt schema", LOOK if dropped else FINE,
                f"{said}. Prompts: {', '.join(counts)}; {dropped:,} were unfit.",
                [text for stage in made for text in rows_in(stage, "quarantined.parquet")][:EXAMPLES])


def template_of(report: Stage) -> str | None:
    """The SHA-256 of the chat template under which a report was made."""
    return json.loads((report.path / "report.json").read_text(encoding="utf-8")).get("template_sha256")


def policy(run: Lineage) -> Item:
    """Who wrote the rollouts, and from which distribution."""
    rollout = run.recipe["rollout"]
    writers = ", ".join(f"{writer['name']} x {writer['n']} for {writer['fraction']:.0%} of the prompts"
                        for writer in rollout["writers"])
    sampling = ", ".join(f"{key} {value}" for key, value in rollout["sampling"].items())
    refiners = ", ".join(map(slot_text, run.recipe["refine"]))
    refined = f" Refined by {refiners}." if refiners else ""
    return item("Rollout policy", FINE, f"{writers}; {rollout['prompts_per_round']} prompts a round; {sampling}."
                + refined)


def filters(run: Lineage) -> Item:
    """What was dropped on the way to training, by whom, with examples."""
    total, dropped, examples = 0, {}, []
    for one in run.rounds:
        total += one.last("rollouts").record["counts"].get("rollouts", 0) if one.last("rollouts") else 0
        for kind, file in DROPPED:
            for stage in (stage for stage in one.stages if stage.kind == kind):
                rows = rows_in(stage, file)
                dropped[kind] = dropped.get(kind, 0) + len(rows)
                examples += [f"round {one.index + 1}: {text}" for text in rows]
    asked = ", ".join(slot_text(slot) for slot in run.recipe["rollout"]["filters"]) or "none"
    told = ", ".join(f"{count:,} at {kind}" for kind, count in dropped.items() if count) or "nothing"
    return item("Filters and what they dropped", LOOK if any(dropped.values()) else FINE,
                f"Filters: {asked}. Of {total:,} rollouts dropped: {told}.", examples[:EXAMPLES])


def rows_in(stage: Stage, file: str) -> list[str]:
    """What a stage dropped, a line each; nothing where it keeps no such file."""
    path = stage.path / file
    if not path.exists() or not pq.read_metadata(path).num_rows:
        return []
    return [f"{row.item_id}: {row.reason}: {shortened(row.text, 200)}" for row in read_rows(path, Quarantined)]


def checkpoint(run: Lineage) -> Item:
    """The weights that the numbers are of."""
    if not run.rounds:
        return item("Checkpoint", MISSING, "No round has finished.")
    last = run.rounds[-1]
    record = last.checkpoint.record
    gone = " Its weights were removed since; the same command makes them again." if record["retired"] else ""
    return item("Checkpoint", LOOK if gone else FINE,
                f"{short(last.checkpoint.artifact)}, after {last.index + 1} of {run.recipe['rounds']} rounds, "
                f"{last.trained_tokens:,} trained tokens, made {record['created']}.{gone}")


def freshness(run: Lineage) -> Item:
    """How old the student was that wrote what was trained on."""
    if not run.rounds:
        return item("Freshness", MISSING, "No round has finished.")
    others = {one.index + 1: names for one in run.rounds if (names := authors_without_student(one))}
    stale = [one.index + 1 for one in run.rounds if age(one) is False and one.index + 1 not in others]
    steps = max(one.checkpoint.record["counts"].get("steps", 1) for one in run.rounds)
    told = []
    if stale:
        told.append(f"written by another version than the round's own student in rounds {', '.join(map(str, stale))}")
    elif len(others) < len(run.rounds):
        told.append(f"every {'other ' if others else ''}round's rollouts were written for the very student that then "
                    "trained on them")
    for names in dict.fromkeys(others.values()):
        rounds = ", ".join(str(number) for number, who in others.items() if who == names)
        told.append(f"off policy: {names} wrote in rounds {rounds}, the student nothing")
    answer = "; ".join(told)
    return item("Freshness", LOOK if stale else FINE, f"{answer[0].upper()}{answer[1:]}; at most {steps:,} optimizer "
                f"step{'s' if steps != 1 else ''} on one round's rollouts.")


def authors_without_student(one: Round) -> str:
    """Who wrote a round's rollouts where the student wrote no token of them; empty where it did, or nobody says."""
    written = one.last("rollouts")
    counts = written.record["counts"] if written else {}
    if counts.get(WRITTEN[STUDENT]):
        return ""
    return " and ".join(name for author, name in ((TEACHER, "the teacher"), (DATASET, "the dataset"))
                        if counts.get(WRITTEN[author]))


def age(one: Round) -> bool | None:
    """Whether a round's rollouts are of the student that trained on them; None where nobody says."""
    written = one.last("rollouts")
    if written is None or "student" not in written.record["inputs"]:
        return None
    return written.record["inputs"]["student"]["fingerprint"] == one.checkpoint.record["inputs"]["student"][
        "fingerprint"]


def improvement(run: Lineage, verdict: str) -> Item:
    """Whether questions that nobody trained on are answered better."""
    measured = [name for name in run.benchmarks() if all(run.ends(name))]
    return item("Held-out improvement", FINE if measured else MISSING,
                verdict if measured else "No benchmark has been asked before and after training.")


def failures(run: Lineage, wrong: dict[str, tuple[int, int]]) -> Item:
    """How many answers are wrong, and where they can be read."""
    if not wrong:
        return item("Failure cases inspected", MISSING, "No benchmark has been asked.")
    told = "; ".join(f"{count:,} of {asked:,} first answers on {name} are wrong"
                     for name, (count, asked) in wrong.items())
    return item("Failure cases inspected", LOOK if any(count for count, _ in wrong.values()) else FINE,
                f"{told}. The page of the run shows the first of them: nobody but a reader can inspect them.")
