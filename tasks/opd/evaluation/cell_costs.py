"""What a cell cost: sums over the artifacts that its last checkpoint was made from, evaluation apart. No torch.

Every record names its inputs, and a retired artifact keeps its record, so the store knows what a run spent. A run that
was resumed, or that found artifacts of another cell, costs what it would have cost alone: shared work counts in full.
Left out: making models and prompts, and preflight.
"""
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tasks.opd.core.costs import READ, SECONDS, TRAINED, WRITTEN, summed
from tasks.opd.core.records import DATASET, STUDENT, TEACHER
from tasks.opd.store.artifacts import Artifact, read_record

ROUND = ("rollouts", "grades", "refined", "scores", "checkpoint")  # the stages of a round
EVALUATION_STAGES = ("report", "divergence")
TOKENS = {"student wrote": WRITTEN[STUDENT], "teacher wrote": WRITTEN[TEACHER], "dataset wrote": WRITTEN[DATASET],
          "teacher read": READ, "trained": TRAINED}               # header -> name
EVALUATION = {"eval wrote": WRITTEN[STUDENT], "eval read": READ}
NOTE = ("Costs are means over seeds of a cell's rounds, work shared with other cells in full, evaluation (before, "
        "after, on the way) apart. Written: completion tokens generated or supplied, kept or not; read: completion "
        "tokens that a teacher or reference scores, verifies or rewrites; trained: with a non-zero coefficient. "
        "Seconds are those in which artifacts were made, by stage; MB (10^6 bytes) were written. -: not known; empty: "
        "no such stage.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What one cell cost, or the mean of a variant's; what is not known is missing."""
    tokens: dict[str, float]                # by name, see `core.costs`
    evaluation_tokens: dict[str, float]     # the same of the benchmarks, on the way too
    seconds: dict[str, float]               # by stage; EVALUATION_STAGES are the evaluation
    size: dict[str, float]                  # `bytes` of all files as they were written


def costs_of(checkpoint: Artifact, evaluation: Iterable[Artifact]) -> Costs:
    """What a cell cost whose last checkpoint, reports and divergences these are; nothing where a record is gone."""
    rounds = records_behind([checkpoint], ROUND)
    evaluated = records_behind(evaluation, EVALUATION_STAGES)
    seconds, size = Counter(), Counter()
    for record in (*rounds, *evaluated):
        seconds[record["kind"]] += record["seconds"]
        size["bytes"] += sum(file["bytes"] for file in record["files"].values())
    return Costs(tokens=tokens_of(rounds), evaluation_tokens=tokens_of(evaluated), size=dict(size),
                 seconds={kind: seconds[kind] for kind in (*ROUND, *EVALUATION_STAGES) if kind in seconds})


def records_behind(artifacts: Iterable[Artifact], kinds: tuple[str, ...]) -> list[dict]:
    """The records of these artifacts and of all they were made from, of these kinds, each once; none if one is gone."""
    found, waiting = {}, list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if artifact.kind not in kinds or artifact.path in found:
            continue
        record = read_record(artifact.path)
        if record is None:
            return []
        found[artifact.path] = record
        waiting += map(Artifact.from_json, record["inputs"].values())
    return list(found.values())


def tokens_of(records: list[dict]) -> dict[str, int]:
    """Tokens by name; none where there are no records, which is not to have spent none."""
    return summed((record["kind"], record["counts"]) for record in records) if records else {}


def amount_of(costs: Costs, currency: str) -> float | None:
    """What rounds spent of a currency: tokens by name, or seconds; None where not known."""
    return total(costs.seconds, ROUND) if currency == SECONDS else costs.tokens.get(currency)


def mean_of(cells: list[Costs]) -> Costs:
    """Means over cells, each over those that know the number."""
    fields = {field: [getattr(cell, field) for cell in cells] for field in Costs.__dataclass_fields__}
    return Costs(**{field: {name: statistics.fmean(known[name] for known in given if name in known)
                            for name in dict.fromkeys(name for known in given for name in known)}
                    for field, given in fields.items()})


def cost_tables(rows: list[tuple[str, str, Costs]]) -> list[list[list[str]]]:
    """Header and lines, as text, of thousands of tokens and of seconds, of rows (variant, mean reward, costs).

    Columns that nobody fills are left out, and tables that have no others.
    """
    if not any(costs.tokens or costs.seconds for _, _, costs in rows):
        return []
    return [token_table(rows), seconds_table(rows)]


def token_table(rows: list[tuple[str, str, Costs]]) -> list[list[str]]:
    """Thousands of tokens beside the mean reward; `-` where not known."""
    columns = [(header, field, name) for field, names in (("tokens", TOKENS), ("evaluation_tokens", EVALUATION))
               for header, name in names.items() if any(name in getattr(costs, field) for _, _, costs in rows)]
    lines = [[variant, mean, *(number(getattr(costs, field).get(name), 1000) for _, field, name in columns)]
             for variant, mean, costs in rows]
    return [["1,000 tokens", "mean", *(header for header, _, _ in columns)], *lines]


def seconds_table(rows: list[tuple[str, str, Costs]]) -> list[list[str]]:
    """Seconds by stage, of all rounds and of the evaluation, and megabytes written."""
    stages = [stage for stage in ROUND if any(stage in costs.seconds for _, _, costs in rows)]
    lines = [["seconds", *stages, "all rounds", "evaluation", "MB"]]
    for variant, _, costs in rows:
        own = costs.seconds
        rounds = total(own, ROUND)
        lines.append([variant, *(number(own[stage]) if stage in own else "" if rounds is not None else "-"
                                 for stage in stages),
                      number(rounds), number(total(own, EVALUATION_STAGES)), number(costs.size.get("bytes"), 1e6)])
    return lines


def total(seconds: dict[str, float], stages: tuple[str, ...]) -> float | None:
    """The sum over those of the stages that there are; None where there is none."""
    return sum(seconds[stage] for stage in stages if stage in seconds) if seconds.keys() & set(stages) else None


def number(value: float | None, unit: float = 1) -> str:
    """In units, one decimal; `-` where not known."""
    return "-" if value is None else f"{value / unit:,.1f}"
