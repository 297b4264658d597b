"""The checks of a candidate against the champion, as a table: what was asked, what came out, whether it stops it.

Differences are paired over prompts, candidate minus champion, with the percentile bootstrap of `statistics`. A missing
number fails its check: what was not measured was not shown.
"""
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tasks.opd.core.tables import aligned, in_markdown
from tasks.opd.evaluation.statistics import Interval, bootstrap
from tasks.opd.recipe.refreshes import Gate
from tasks.opd.refresh.evidence import Answers, Evidence
from tasks.opd.store.artifacts import home

ERROR, WARNING = "error", "warning"
PASSED, REFUSED = "passed", "refused"
WARNINGS = ("length", "divergence")     # checks that are warnings unless the gate says otherwise
FINGERPRINT = re.compile(r"[0-9a-f]{32}")
HEADER = ("check", "severity", "value", "limit", "passed", "evidence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the table."""
    name: str                           # of refreshes.CHECKS, and /benchmark where it is of one
    severity: str                       # ERROR stops the candidate, WARNING is shown
    passed: bool
    value: str                          # as a person reads it
    limit: str
    evidence: str                       # the folder in which it can be looked up


def checks_of(evidence: Evidence, gate: Gate) -> list[Check]:
    """All checks, in the order of the table. A benchmark that was not asked of both fails."""
    asked = {name: (before, evidence.candidate[name]) for name, before in evidence.champion.items()
             if name in evidence.candidate}
    found = [check(f"{kind}/{name}", False, "not asked", "asked of both", evidence.place)
             for kind, names in (("target", [gate.target]), ("retention", gate.retention))
             for name in names if name not in asked]
    if gate.target in asked:
        found.append(target_check(gate, *asked[gate.target]))
    found += [retention_check(name, margin, *asked[name]) for name, margin in gate.retention.items() if name in asked]
    for name, both in asked.items():
        found += [*pass_at_checks(name, gate, *both), *health_checks(name, gate, *both)]
    return [with_severity(one, gate) for one in (*found, *identity_checks(evidence))]


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check of severity error failed; a table without checks shows nothing, and does not pass."""
    return bool(checks) and all(check.passed or check.severity == WARNING for check in checks)


def paired(before: dict[str, float], after: dict[str, float]) -> tuple[float, Interval]:
    """Mean difference over prompts and its interval. Raises ValueError for other prompts."""
    if before.keys() != after.keys():
        raise ValueError("champion and candidate were asked other prompts; they cannot be paired")
    differences = np.array([after[prompt] - before[prompt] for prompt in sorted(before)])
    return float(differences.mean()), bootstrap(differences, seed=0)


def target_check(gate: Gate, before: Answers, after: Answers) -> Check:
    """Better by more than the margin; or, where parity is allowed, not worse by its margin and cheaper."""
    difference, interval = paired(before.rewards, after.rewards)
    better, limit = interval[0] > gate.margin, f"> {points(gate.margin)}"
    if gate.parity_margin:
        saved = 1 - after.counts["length_mean_tokens"] / before.counts["length_mean_tokens"]
        better |= interval[0] > -gate.parity_margin and saved >= gate.cheaper
        limit += f", or > {points(-gate.parity_margin)} and {gate.cheaper:.0%} shorter ({saved:+.0%})"
    return check(f"target/{gate.target}", better, shown(difference, interval), limit, after.place)


def retention_check(name: str, margin: float, before: Answers, after: Answers) -> Check:
    """Not worse than by the margin: non-inferiority."""
    difference, interval = paired(before.rewards, after.rewards)
    return check(f"retention/{name}", interval[0] > -margin, shown(difference, interval), f"> {points(-margin)}",
                 after.place)


def pass_at_checks(name: str, gate: Gate, before: Answers, after: Answers) -> Iterator[Check]:
    """pass@k, for every k above 1: not worse than by the margin."""
    for k, values in after.pass_at.items():
        difference, interval = paired(before.pass_at[k], values)
        yield check(f"pass_at/{name}@{k}", interval[0] > -gate.pass_at_margin, shown(difference, interval),
                    f"> {points(-gate.pass_at_margin)}", after.place)


def health_checks(name: str, gate: Gate, before: Answers, after: Answers) -> Iterator[Check]:
    """Answers end, are about as long as they were, and are no further from the teacher's."""
    more = after.counts["truncated_share"] - before.counts["truncated_share"]
    yield check(f"truncation/{name}", more <= gate.truncated_margin, f"{points(more)}",
                f"<= {points(gate.truncated_margin)}", after.place)
    lengths = [answers.counts["length_mean_tokens"] for answers in (before, after)]
    ratio = max(lengths) / min(lengths) if min(lengths) else math.inf
    yield check(f"length/{name}", ratio <= gate.length_ratio, f"{lengths[0]:.1f} -> {lengths[1]:.1f}",
                f"ratio <= {gate.length_ratio:g}", after.place)
    apart = [answers.counts.get("reverse_kl_mean_nats") for answers in (before, after)]
    if None not in apart:
        yield check(f"divergence/{name}", apart[1] <= apart[0], f"{apart[0]:.3f} -> {apart[1]:.3f} nats",
                    "not further", after.place)


def identity_checks(evidence: Evidence) -> Iterator[Check]:
    """The same tokenizer, clean prompts, the same questions, and the weights that were asked."""
    ours, theirs = evidence.candidate_tokenizer, evidence.champion_tokenizer
    other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    yield check("tokenizer", not other and bool(ours), ", ".join(other) or "same" if ours else "none", "same",
                evidence.place)
    leaked = evidence.contaminated
    example = f", for example {next(iter(leaked))[:8]}" if leaked else ""
    yield check("contamination", not leaked, f"{len(leaked)} prompts{example}", "0 prompts", evidence.place)
    differs = sorted(name for name, after in evidence.candidate.items()
                     if name not in evidence.champion or after.asked != evidence.champion[name].asked)
    yield check("same_questions", not differs, ", ".join(differs) or "same", "same", evidence.place)
    digests = {answers.model_digest for answers in evidence.candidate.values()}
    wrong = [*(f"asked {digest[:8]}" for digest in sorted(digests - {evidence.checkpoint_digest})), *evidence.differing]
    yield check("digest", not wrong and bool(digests), ", ".join(wrong[:3]) or evidence.checkpoint_digest[:8],
                evidence.checkpoint_digest[:8], evidence.place)


def check(name: str, is_passed: bool, value: str, limit: str, evidence: str) -> Check:
    """A line of the table, an error unless the gate makes it a warning."""
    return Check(name=name, severity=ERROR, passed=bool(is_passed), value=value, limit=limit, evidence=evidence)


def with_severity(one: Check, gate: Gate) -> Check:
    """The check with the severity that the gate gives it."""
    kind = one.name.partition("/")[0]
    severity = gate.severity.get(kind, WARNING if kind in WARNINGS else ERROR)
    return Check(**asdict(one) | {"severity": severity})


def points(value: float) -> str:
    """A share in points, signed: +1.2."""
    return f"{100 * value:+.1f}"


def shown(difference: float, interval: Interval) -> str:
    """`+1.2 [-0.3 +2.7]`, in points."""
    return f"{points(difference)} [{points(interval[0])} {points(interval[1])}]"


def rows_of(checks: Sequence[Check]) -> list[list[str]]:
    """The table as text, header first."""
    return [list(HEADER), *([one.name, one.severity, one.value, one.limit, "yes" if one.passed else "NO", one.evidence]
                            for one in checks)]


def to_text(checks: Sequence[Check]) -> str:
    """The table for a terminal, without its last column, which is long."""
    return "\n".join(aligned([row[:-1] for row in rows_of(checks)]))


def to_markdown(checks: Sequence[Check]) -> str:
    """The table with its evidence."""
    header, *rows = rows_of(checks)
    return "\n".join(in_markdown([header, *([*row[:-1], place_shown(row[-1])] for row in rows)]))


def place_shown(folder: str) -> str:
    """A folder as seen from home(), an artifact's fingerprint by its first digits: artifacts/report/62981bca."""
    place = Path(folder).relative_to(home()) if Path(folder).is_relative_to(home()) else Path(folder)
    return str(place.with_name(place.name[:8]) if FINGERPRINT.fullmatch(place.name) else place)


def to_json(checks: Sequence[Check]) -> str:
    """One JSON list."""
    return json.dumps([asdict(one) for one in checks], ensure_ascii=False)


def from_json(text: str) -> list[Check]:
    """The inverse of `to_json`."""
    return [Check(**one) for one in json.loads(text)]


def failures(checks: Sequence[Check]) -> str:
    """What stops a candidate, on a line; empty when nothing does."""
    return "; ".join(f"{one.name} {one.value}, wanted {one.limit}" for one in checks
                     if not one.passed and one.severity == ERROR)
