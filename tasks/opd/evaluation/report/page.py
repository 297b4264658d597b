"""One HTML file: text and tables as they are, figures drawn in the browser by Observable Plot, which is in the file.

A completion is hostile text: everything is escaped by the template, the data stand as JSON that is never markup, and
characters that turn or hide text are spelt out. The page may ask nobody for anything (its content security policy).
Plot draws every chart that is here, heat maps and lines over many rounds too; a second library would draw none better.
"""
import base64
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.opd.evaluation.report.checklist import Item
from tasks.opd.evaluation.report.curves import Map, Point
from tasks.opd.evaluation.report.prompts import Flips, Question
from tasks.opd.evaluation.report.recipes import Differences
from tasks.opd.evaluation.report.tokens import Shown

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("d3.min.js", "plot.min.js", "figures.js", "rollouts.js", "report.js")    # in the order they are run
LIMIT = 2_000_000                       # bytes of a page: MLflow's viewer chokes on more
NUMBER = re.compile(r"[-+]?[\d,.]*\d%?( \[.*\])?|-|failed|")       # what a column of numbers may hold
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of text."""
    title: str
    rows: list[list[str]]                   # the header first
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A cell's learning curves by quantity."""
    variant: str
    seed: int
    curves: dict[str, list[Point]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a page shows; a section without content is left out."""
    title: str
    subject: str                            # "suite" or "run"
    verdict: str
    facts: dict[str, str]
    command: str = ""                       # that makes the page again, but for its options
    benchmark: str = ""
    baseline: str = ""
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)               # what rules say is going wrong
    forest: list[dict[str, Any]] = field(default_factory=list)      # a comparison's rows that have an interval
    lines: list[Line] = field(default_factory=list)
    pareto: list[dict[str, Any]] = field(default_factory=list)      # variant, mean, costs by name
    flips: list[Flips] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    wrong: list[Question] = field(default_factory=list)
    pass_at: list[dict[str, Any]] = field(default_factory=list)     # variant, points [k, value]
    retention: Table | None = None
    maps: dict[str, list[Map]] = field(default_factory=dict)        # by variant
    differences: Differences | None = None
    costs: list[Table] = field(default_factory=list)
    cost_notes: list[str] = field(default_factory=list)
    checklist: list[Item] = field(default_factory=list)
    checklist_of: str = ""
    rollouts: list[Shown] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    recipe: list[tuple[str, str]] = field(default_factory=list)


# What the figures are drawn from.
DRAWN = ("forest", "lines", "pareto", "flips", "questions", "maps", "differences", "rollouts", "pieces", "pass_at",
         "baseline", "benchmark", "subject")


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters["sides"] = sides
    shown = visible(dataclasses.asdict(page))
    data = htmlsafe_json_dumps({name: shown[name] for name in DRAWN}, dumps=compact)
    return environment.get_template("page.html").render(
        page=shown, data=data, scripts=[script(name) for name in SCRIPTS], style=asset("report.css"),
        policy=policy(), credits=[asset(f"{name}.LICENSE") for name in ("plot", "d3")])


def fitting(pages: Iterable[Page]) -> str:
    """The first of these pages that is no larger than LIMIT, or the last, as HTML; each holds less than the one before.
    """
    html = ""
    for page in pages:
        html = render(page)
        if len(html.encode()) <= LIMIT:
            break
    return html


def compact(value: Any, **_) -> str:
    """JSON without spaces; NaN would be none."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def visible(value: Any) -> Any:
    """Plain data in which characters that turn, hide or end text are spelt out: `[U+202E]`."""
    if isinstance(value, str):
        return HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", value)
    if isinstance(value, dict):
        return {visible(key): visible(inner) for key, inner in value.items()}
    return [visible(inner) for inner in value] if isinstance(value, list | tuple) else value


def sides(rows: list[list[str]]) -> list[str]:
    """The class of each column of a table: `number`, which stands to the right, where nothing else is in it."""
    columns = zip(*rows[1:])
    return ["number" if i and all(NUMBER.fullmatch(cell) for cell in column) and any(column) else ""
            for i, column in enumerate(columns)]


@functools.cache
def asset(name: str) -> str:
    """A file that pages are made of."""
    return (ASSETS / name).read_text(encoding="utf-8")


def script(name: str) -> str:
    """A script as it stands in the page, which its hash in the policy is of."""
    return f"\n{asset(name)}\n"


@functools.cache
def policy() -> str:
    """The content security policy: these very scripts, styles and pictures in the page, nothing from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(script(name).encode()).digest()).decode() for name in SCRIPTS]
    scripts = " ".join(f"'sha256-{one}'" for one in hashes)
    return (f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
            "form-action 'none'")
