"""Where questions come from: a source gives item i of an endless or fixed list, always the same one.

An item has `text` (the question), `answer`, `solution`, `entry` and `domain`, and `history` where messages stand before
the question; or `invalid`, the reason why it is none.
"""
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import DataError
from tasks.opd.core.files import cache_error
from tasks.opd.data import tiny as tiny_task
from tasks.opd.data import tiny_bench
from tasks.opd.data import tiny_long as long_task
from tasks.opd.data.fields import item_of, packed, text_of
from tasks.opd.data.row_files import numbered_rows

NUMBER_ONLY = re.compile(r"\s*Give the result as your final answer\.(?: Do not include units\.)?\s*$")
CLOSING = re.compile(r"\s*####.*\Z", re.S)  # GSM8K's way to close a worked solution
WORKING = " Show your working step by step, then give the final number on a last line that starts with 'Answer:'."


def tiny(indices: range, *, seed: Annotated[int, Field(ge=0)] = 0, num_steps: Annotated[int, Field(ge=0, le=5)] = 0,
         highest: Annotated[int, Field(ge=19, le=99)] = 59,
         largest: Annotated[int, Field(ge=1, le=9)] = 9, question_first: bool = False) -> Iterator[dict]:
    """Word problems made on the spot (see `tiny`), with worked solutions; endless.

    They have `num_steps` steps, four or five where it is 0, none above `largest`, and no value above `highest`. What is
    asked stands last, or first: another wording of the same problem.
    """
    for index in indices:
        made = tiny_task.problem(index, seed, num_steps, highest, largest, question_first)
        yield {"text": made.text, "answer": made.answer, "solution": made.solution, "entry": made.entry,
               "domain": made.domain}


def tiny_lists(indices: range, *, seed: Annotated[int, Field(ge=0)] = 0) -> Iterator[dict]:
    """Lists of digits to be sorted (see `tiny_bench`), which the bench's models know; endless, with repetitions."""
    for index in indices:
        asked, answer = tiny_bench.sorting(index, seed)
        yield {"text": asked, "answer": answer, "solution": f"answer: {answer}", "entry": {}, "domain": "lists"}


def tiny_long(indices: range, *, seed: Annotated[int, Field(ge=0)] = 0,
              split: Literal["train", "validation", "test"] = "train",
              num_steps: Annotated[int, Field(ge=1, le=20)] = 14,
              highest: Annotated[int, Field(ge=19, le=99)] = 59,
              largest: Annotated[int, Field(ge=1, le=9)] = 9) -> Iterator[dict]:
    """Long computations made on the spot (see `tiny_long`), with worked solutions; endless.

    No text is in two splits. They have `num_steps` steps, none above `largest`, and no value above `highest`.
    """
    for index in indices:
        made = long_task.problem(index, seed, split, num_steps, highest, largest)
        yield {"text": made.text, "answer": made.answer, "solution": made.solution, "entry": made.entry,
               "domain": "long"}


def reasoning_gym(indices: range, *, dataset: str = "gsm_symbolic", seed: Annotated[int, Field(ge=0)] = 0,
                  ask_for_working: bool = True) -> Iterator[dict]:
    """Items of a reasoning-gym dataset made with `seed`: item i is the dataset's own item i, drawn from seed + i.

    Item 1 of seed 0 and item 0 of seed 1 therefore share their random numbers: keep one seed and take disjoint index
    ranges. `ask_for_working` replaces gsm_symbolic's closing sentence ("Give the result as your final answer. Do not
    include units.") by one that asks for the working; other questions stay as they are.
    """
    data = gym_dataset(dataset, seed, indices.stop)
    for index in indices:
        item = data[index]
        text = item["question"]
        if ask_for_working and NUMBER_ONLY.search(text):
            text = NUMBER_ONLY.sub("", text) + WORKING
        entry = {"dataset": dataset, "seed": seed, "index": index, "answer": item["answer"],
                 "metadata": packed(item["metadata"])}
        yield {"text": text, "answer": str(item["answer"]), "solution": worked(item), "entry": entry, "domain": dataset}


def worked(item: dict) -> str | None:
    """The worked solution that a reasoning-gym item carries in its metadata; None without one."""
    solution = item["metadata"].get("answer_cot")
    return None if not solution else CLOSING.sub(f"\nThe answer is {item['answer']}.", solution)


def gym_dataset(name: str, seed: int, size: int):
    """A reasoning-gym dataset of `size` items. Raises DataError when there is none of that name."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    if name not in DATASETS:
        raise DataError(f"reasoning-gym has no dataset {name!r}; it has {', '.join(sorted(DATASETS))}")
    return reasoning_gym.create_dataset(name, seed=seed, size=size)


def jsonl(indices: range, *, path: str, question: str = "question", answer: str = "answer", solution: str = "",
          entry: str = "", domain: str = "") -> Iterator[dict]:
    """Rows of a file (see `row_files`), or of all *.jsonl and *.jsonl.gz of a folder, in the order of their names.

    `question` (a text, or messages), `answer`, `solution`, `entry` (an object, what else the grader needs) and `domain`
    name fields; empty: there is none.
    """
    for where, row in itertools.islice(numbered_rows(path), indices.start, indices.stop):
        yield item_of(row, where, question, answer, solution, entry, domain)


def hub(indices: range, *, dataset: str, config: str = "", split: str = "train", question: str = "question",
        answer: str = "answer", solution: str = "", revision: str = "") -> Iterator[dict]:
    """Rows of a Hugging Face dataset, or of a local folder with one, with named fields as for jsonl.

    In GSM8K's answers "####" stands between solution and truth.
    Raises: DataError when there is no such dataset, and when its files do not have the same columns; DiskFull where
    datasets cannot keep it.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    try:
        rows = datasets.load_dataset(dataset, config or None, split=split, revision=revision or None)
    except (OSError, ValueError, DatasetsError) as error:
        if full := cache_error(error, Path(datasets.config.HF_DATASETS_CACHE), f"dataset {dataset}"):
            raise full from error
        raise DataError(f"dataset {dataset} ({config or 'no config'}, split {split}) cannot be had: {error}") from error
    for index in range(indices.start, min(indices.stop, len(rows))):
        yield item_of(rows[index], f"{dataset}[{index}]", question, answer, solution)


def text(indices: range, *, path: str, field: str = "text", opening_characters: Annotated[int, Field(ge=1)] = 32,
         window_characters: Annotated[int, Field(ge=2)] = 512) -> Iterator[dict]:
    """Plain text for a language-modelling term: windows of documents, one after the other; `path` as for jsonl.

    The prompt is a window's opening, without a chat template; its solution is the rest, which the writer `dataset`
    copies, with an EOS only where the document ends. Both are cut at spaces, where there are any.
    """
    windows = (item for where, row in numbered_rows(path)
               for item in windows_of(row, where, field, opening_characters, window_characters))
    yield from itertools.islice(windows, indices.start, indices.stop)


def windows_of(row: dict, where: str, field: str, opening: int, window: int) -> Iterator[dict]:
    """A document's windows as items; one that says so under `invalid` where it has no text."""
    document, reason = row.get(field), row.get("invalid")
    try:
        rest = text_of(document, field).strip() if isinstance(document, str) else ""
    except ValueError as error:
        rest, reason = "", f"{where}: {error}"
    if not rest:
        yield {"invalid": reason or f"{where} has no text at {field!r}; it has {sorted(row)}", "text": ""}
    while rest:
        part, rest = cut(rest, window)
        first, body = cut(part, opening)
        yield {"text": first, "answer": "", "solution": body or None, "entry": {"ends": not rest}, "domain": "text",
               "plain": True}


def cut(document: str, characters: int) -> tuple[str, str]:
    """A text's first `characters` at most, up to a space where there is one among them, and the rest."""
    if len(document) <= characters:
        return document, ""
    at = document.rfind(" ", 1, characters + 1)
    at = at if at > 0 else characters
    return document[:at], document[at:]


SOURCES = {
    "tiny": Entry(tiny, identity=("seed", "num_steps", "highest", "largest")),
    "tiny_lists": Entry(tiny_lists, identity=("seed",)),
    "tiny_long": Entry(tiny_long, identity=("seed", "split", "num_steps", "highest", "largest")),
    "reasoning_gym": Entry(reasoning_gym, identity=("dataset",), seed_shifts=True,
                           solved=lambda params: params["dataset"] in {"gsm_symbolic"}),
    "jsonl": Entry(jsonl, identity=("path",), solved=lambda params: bool(params["solution"])),
    "text": Entry(text, identity=("path",)),
    "hub": Entry(hub, remote=True, identity=("dataset", "config", "split"), solved=lambda params: (
        bool(params["solution"]) or params["dataset"] == "openai/gsm8k"))}
