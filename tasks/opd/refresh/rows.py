"""Prompts that came in, known by the hash of their contents: a copy, or another place in another file, is not new."""
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tasks.opd.core.files import sync
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data.fields import all_said, conversation, turns_of
from tasks.opd.data.sources import SOURCES
from tasks.opd.recipe.schema import Slot
from tasks.opd.store.fingerprints import canonical

FIELDS = {"question": "text", "answer": "answer", "entry": "entry", "domain": "domain"}  # jsonl's parameters -> ours
LOOKED_AT = 10_000_000                  # rows of a source, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt with its truth."""
    text: str
    answer: str
    solution: str | None
    entry: dict                         # what else the grader needs
    domain: str
    history: list[dict] = field(default_factory=list)  # the messages before the question

    @property
    def row_id(self) -> str:
        """32 hex characters: the hash of question (without case and surplus spaces), answer and solution."""
        contents = [normalised(all_said(self.history, self.text)), self.answer, self.solution]
        return hashlib.sha256(canonical(contents).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a source has that was not seen before."""
    new: list[Row]                      # to be trained on, in the source's order
    held_out: list[Row]                 # to be asked and never trained on
    skipped: dict[str, int]             # rows that are not prompts, by reason


def normalised(text: str) -> str:
    """A text without case and surplus spaces."""
    return " ".join(text.lower().split())


def is_held_out(text: str, share: float) -> bool:
    """Whether a question is among the share that is never trained on: by its hash, so the same whatever its answer."""
    return derive_seed("held out", normalised(text)) < share * 2**63


def scan(source: Slot, seen: set[str], *, at_most: int, held_out_share: float, asked: set[str]) -> Found:
    """The first `at_most` new rows of a source to be trained on, and the new ones before them to be held out.

    `seen` are ids, `asked` the normalised questions of benchmarks, which are left out. Not valid JSON, empty, plain
    text, asked in a benchmark: counted in `skipped`. Raises: DataError where the source cannot be read.
    """
    new, held_out, skipped, known = [], [], Counter(), set(seen)
    items = SOURCES[source.name](range(LOOKED_AT), **source.params)
    while len(new) < at_most and (item := next(items, None)) is not None:
        reason = unfit(item, asked)
        if reason:
            skipped[reason] += 1
            continue
        row = Row(**{name: item[name] for name in Row.__dataclass_fields__ if name in item})
        if (row_id := row.row_id) not in known:
            known.add(row_id)
            (held_out if is_held_out(all_said(row.history, row.text), held_out_share) else new).append(row)
    return Found(new=new, held_out=held_out, skipped=dict(skipped))


def unfit(item: dict, asked: set[str]) -> str | None:
    """Why an item of a source is no prompt to train on; None when it is one."""
    if "invalid" in item:
        return "invalid"
    if not item["text"].strip():
        return "empty"
    if item.get("plain"):
        return "plain text"
    return "asked in a benchmark" if normalised(question_of(item)) in asked else None


def question_of(item: dict) -> str:
    """All that an item of a source asks, the messages before its question included."""
    return all_said(item.get("history", []), item["text"])


def chosen(row_ids: Iterable[str], count: int, *parts: int | str) -> list[str]:
    """`count` of some ids, in an order hashed from `parts`: the same for the same ids, whatever their order."""
    return sorted(row_ids, key=lambda row_id: derive_seed(*parts, row_id))[:count]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Rows as JSON Lines, on the disk, as the source `jsonl` reads them: `text` is a text, or messages."""
    written = ({name: value for name, value in asdict(row).items() if name != "history"}
               | {"text": conversation(row.history, row.text)} for row in rows)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written), encoding="utf-8")
    sync(file)


def read_rows(file: Path) -> dict[str, Row]:
    """The rows of a file that `write_rows` wrote, by id, in their order."""
    found = {}
    for line in filter(None, file.read_text(encoding="utf-8").split("\n")):  # texts may hold other line separators
        written = json.loads(line)
        history, text = turns_of(written["text"], "text")
        row = Row(**written | {"history": history, "text": text})
        found[row.row_id] = row
    return found


def source_of(file: Path, rows: Iterable[Row]) -> dict:
    """The source, as a recipe names it, of a file of rows; its solutions only when every row has one."""
    solved = {"solution": "solution"} if all(row.solution for row in rows) else {}
    return {"name": "jsonl", "path": str(file), **FIELDS, **solved}


def watermark(row_ids: Iterable[str]) -> str:
    """16 hex characters that name a set of rows."""
    return hashlib.sha256(canonical(sorted(row_ids)).encode()).hexdigest()[:16]
