"""What benchmarks share with all that a student was trained on: prompts, their solutions, and every round's rollouts.

The rollouts are those that training read: a teacher's, a dataset's or the student's own, refined or not. Beside the
recipe's own benchmarks stand all registered ones that are at hand. The stage reads every rollout of a run: a million
words took 1.6 s against 1,500 questions on one core, decoding aside.
"""
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt, read_rows
from tasks.opd.data.contamination import FILE, contamination, refuse, said_to
from tasks.opd.data.fields import all_said
from tasks.opd.data.sources import SOURCES

BATCH = 256                             # rollouts decoded at once


def measure_exposure(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: FILE, what `contamination` says of each of the spec's benchmarks, by name.

    A benchmark is {source, first, count, max_contaminated}; the last is None where it is only recorded. Those of
    `not_at_hand` are named as not checked.
    Raises: DataError when a larger share than `max_contaminated` of a benchmark's questions are known by their words.
    """
    asked, missing = read_questions(spec["benchmarks"])
    found, missing = contamination(asked, all_trained(inputs)), sorted([*spec["not_at_hand"], *missing])
    for name, told in ((name, spec["benchmarks"][name]) for name in asked):
        examples = found[name]["examples"]
        if told["max_contaminated"] is not None:
            refuse(name, found[name], asked[name][examples[0]] if examples else "", told["max_contaminated"])
    (out / FILE).write_text(json.dumps({"benchmarks": found, "not_checked": missing}))
    shares = {f"{name}_{share}": value for name, told in found.items() for share, value in told.items()
              if share != "examples"}
    return {"benchmarks_not_checked": len(missing), **shares}


def read_questions(benchmarks: dict[str, dict]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The questions of benchmarks by name, and the names of those that cannot be read and need not: without a limit."""
    asked, missing = {}, []
    for name, told in benchmarks.items():
        try:
            asked[name] = questions(name, **told)
        except (DataError, OSError):
            if told["max_contaminated"] is not None:
                raise
            missing.append(name)
    return asked, missing


def questions(name: str, *, source: dict, first: int, count: int, max_contaminated: float | None) -> dict[str, str]:
    """A benchmark's questions by id, with the messages before them."""
    indices = range(first, first + count)
    return {f"{name}:{index}": all_said(item.get("history", []), item["text"])
            for index, item in zip(indices, SOURCES[source["name"]](indices, **source["params"]))}


def all_trained(inputs: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Everything said in the inputs, as (prompt id, text): of `prompts` and of each `rollouts:<i>`."""
    from tokenizers import Tokenizer
    yield from said_to(read_rows(inputs["prompts"] / "prompts.parquet", Prompt))
    tokenizer = Tokenizer.from_file(str(inputs["prompts"] / "tokenizer" / "tokenizer.json"))
    for folder in (folder for name, folder in inputs.items() if name.startswith("rollouts:")):
        file = pq.ParquetFile(folder / "rollouts.parquet")
        for batch in file.iter_batches(batch_size=BATCH, columns=["prompt_id", "token_ids"]):
            yield from zip(batch["prompt_id"].to_pylist(), tokenizer.decode_batch(batch["token_ids"].to_pylist()))
