"""Where questions come from, and how they become token ids.

A source gives item i of an endless or fixed list, always the same one; a slice of it, rendered by the student's chat
template, becomes the prompts. Ids are taken straight from the template and never from text that was rendered before.
What cannot be used is quarantined with its reason and counted. A held-out slice that repeats a training text is
refused.
"""
import itertools
import json
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt, Quarantined, read_rows, source_of, write_rows
from tasks.opd.data import tiny as tiny_task
from tasks.opd.models.tokenizers import control_tokens, encode, num_rows, render
from tasks.opd.store.artifacts import model_folder

ITEM = ("text", "answer", "solution", "entry", "domain")
NUMBER_ONLY = re.compile(r"\s*Give the result as your final answer\.(?: Do not include units\.)?\s*$")
CLOSING = re.compile(r"\s*####.*\Z", re.S)  # GSM8K's way to close a worked solution
WORKING = " Show your working step by step, then give the final number on a last line that starts with 'Answer:'."


def tiny(indices: range, *, seed: Annotated[int, Field(ge=0)] = 0, num_steps: Annotated[int, Field(ge=0, le=5)] = 0,
         highest: Annotated[int, Field(ge=19, le=99)] = 59,
         largest: Annotated[int, Field(ge=1, le=9)] = 9) -> Iterator[dict]:
    """Word problems made on the spot (see `tiny`), with worked solutions; endless.

    They have `num_steps` steps, four or five where it is 0, none above `largest`, and no value above `highest`.
    """
    for index in indices:
        made = tiny_task.problem(index, seed, num_steps, highest, largest)
        yield {"text": made.text, "answer": made.answer, "solution": made.solution, "entry": made.entry,
               "domain": made.domain}


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
                 "metadata": plain(item["metadata"])}
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
    """Lines of a JSON Lines file, or of all *.jsonl of a folder, in the order of their names.

    `question`, `answer`, `solution`, `entry` (an object, what else the grader needs) and `domain` name fields; empty:
    there is none.
    """
    lines = numbered_lines(jsonl_files(Path(path).expanduser()))
    for where, line in itertools.islice(lines, indices.start, indices.stop):
        yield item_of(parsed(line, where), where, question, answer, solution, entry, domain)


def numbered_lines(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Every line with its file and number, as messages name it."""
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{file}:{number}", line


def jsonl_files(path: Path) -> list[Path]:
    """The file, or the *.jsonl of the folder. Raises DataError where neither is."""
    if path.is_dir():
        return sorted(path.glob("*.jsonl"))
    if not path.is_file():
        raise DataError(f"prompts.source.path {path} is neither a file nor a folder; give the path of a .jsonl file, "
                        "or of a folder of such files")
    return [path]


def hub(indices: range, *, dataset: str, config: str = "", split: str = "train", question: str = "question",
        answer: str = "answer", solution: str = "", revision: str = "") -> Iterator[dict]:
    """Rows of a Hugging Face dataset. In GSM8K's answers "####" stands between solution and truth."""
    import datasets
    try:
        rows = datasets.load_dataset(dataset, config or None, split=split, revision=revision or None)
    except (OSError, ValueError) as error:
        raise DataError(f"dataset {dataset} ({config or 'no config'}, split {split}) cannot be had: {error}") from error
    for index in range(indices.start, min(indices.stop, len(rows))):
        yield item_of(rows[index], f"{dataset}[{index}]", question, answer, solution)


def text(indices: range, *, path: str, field: str = "text", opening_characters: Annotated[int, Field(ge=1)] = 32,
         window_characters: Annotated[int, Field(ge=2)] = 512) -> Iterator[dict]:
    """Plain text for a language-modelling term: windows of documents, one after the other; `path` as for jsonl.

    The prompt is a window's opening, without a chat template; its solution is the rest, which the writer `dataset`
    copies, with an EOS only where the document ends. Both are cut at spaces, where there are any.
    """
    windows = (item for where, line in numbered_lines(jsonl_files(Path(path).expanduser()))
               for item in windows_of(parsed(line, where), where, field, opening_characters, window_characters))
    yield from itertools.islice(windows, indices.start, indices.stop)


def windows_of(row: dict, where: str, field: str, opening: int, window: int) -> Iterator[dict]:
    """A document's windows as items; one that says so under `invalid` where it has no text."""
    document = row.get(field)
    if not isinstance(document, str) or not document.strip():
        yield {"invalid": row.get("invalid") or f"{where} has no text at {field!r}; it has {sorted(row)}", "text": ""}
        return
    rest = document.strip()
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


def parsed(line: str, where: str) -> dict:
    """One JSON object, or one that holds only the reason why it is none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return {"invalid": f"{where} is not JSON: {error}"}
    return row if isinstance(row, dict) else {"invalid": f"{where} is not a JSON object"}


def item_of(row: dict, where: str, question: str, answer: str, solution: str, entry: str = "",
            domain: str = "") -> dict:
    """A row with named fields as an item; one that lacks a field says so under `invalid`."""
    missing = [name for name in (question, answer, solution, entry, domain) if name and row.get(name) is None]
    if missing or "invalid" in row:
        reason = row.get("invalid") or f"{where} has no {', '.join(map(repr, missing))}; it has {sorted(row)}"
        return {"invalid": reason, "text": ""}
    truth, worked = split_answer(str(row[answer]))
    worked = str(row[solution]) if solution else worked
    return {"text": str(row[question]), "answer": truth, "solution": worked, "entry": row[entry] if entry else {},
            "domain": str(row[domain]) if domain else "default"}


def split_answer(text: str) -> tuple[str, str | None]:
    """("42", "the working") of GSM8K's "the working\n#### 42"; (text, None) of anything else. Commas in numbers go."""
    working, mark, truth = text.rpartition("####")
    if not mark:
        return text.strip(), None
    working = re.sub(r"<<.*?>>", "", working)  # GSM8K's calculator notes
    return truth.strip().replace(",", ""), working.strip() or None


def plain(value: Any) -> Any:
    """The value as JSON holds it: tuples become lists, what JSON lacks becomes text."""
    return json.loads(json.dumps(value, default=str))


SOURCES = {
    "tiny": Entry(tiny, identity=("seed", "num_steps", "highest", "largest")),
    "reasoning_gym": Entry(reasoning_gym, identity=("dataset",), seed_shifts=True,
                           solved=lambda params: params["dataset"] in {"gsm_symbolic"}),
    "jsonl": Entry(jsonl, identity=("path",), solved=lambda params: bool(params["solution"])),
    "text": Entry(text, identity=("path",)),
    "hub": Entry(hub, identity=("dataset", "config", "split"), solved=lambda params: (
        bool(params["solution"]) or params["dataset"] == "openai/gsm8k"))}


def unfit(item: dict, tokenizer, special: list[str], limit: int, rows: int | None) -> tuple[str | None, list[int]]:
    """Why an item cannot be a prompt (None: it can), and its token ids."""
    if "invalid" in item:
        return f"invalid: {item['invalid']}", []
    if not item["text"].strip():
        return "empty", []
    injected = [token for token in special if token in item["text"]]
    if injected:
        return f"special_token: the text holds {', '.join(injected)}", []
    token_ids = encode(tokenizer, item["text"]) if item.get("plain") else render(tokenizer, item["text"])
    if len(token_ids) > limit:
        return f"too_long: {len(token_ids)} tokens, at most {limit}", []
    return unreadable(token_ids, item["solution"], tokenizer, rows), token_ids


def unreadable(token_ids: list[int], solution: str | None, tokenizer, rows: int | None) -> str | None:
    """Why the student cannot read a prompt or its solution: a token whose id has no row in its embedding."""
    if rows is None or len(tokenizer) <= rows:
        return None
    ids = [*token_ids, *(tokenizer.encode(solution, add_special_tokens=False) if solution else [])]
    if max(ids) < rows:
        return None
    return f"no_embedding: {tokenizer.decode([max(ids)])!r} is token {max(ids)}, the student's embedding has {rows} " \
           "rows"


def make_prompts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: prompts `first` .. `first + count` of a source, rendered for the student, with its tokenizer beside them.

    Their domain is the source's own unless the spec names one.

    Raises: DataError when none is fit, or when a text also stands in the `train` prompts.
    """
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model_folder(inputs["student"]), local_files_only=True)
    limit, rows = min(spec["max_prompt_tokens"], spec["context_tokens"] - 1), num_rows(model_folder(inputs["student"]))
    source, special = spec["source"], control_tokens(tokenizer)
    indices = range(spec["first"], spec["first"] + spec["count"])
    prompts, quarantined = [], []
    with session.progress(spec["count"], f"prompts {spec['name']}", "prompts") as bar:
        for index, item in zip(indices, SOURCES[source["name"]](indices, **source["params"])):
            reason, token_ids = unfit(item, tokenizer, special, limit, rows)
            prompt_id = f"{spec['name']}:{index}"
            if reason:
                quarantined.append(Quarantined(item_id=prompt_id, reason=reason, text=item["text"][:1000]))
            else:
                known = {k: item[k] for k in ITEM} | {"entry": json.dumps(item["entry"]),
                                                      "domain": spec["domain"] or item["domain"]}
                prompts.append(Prompt(prompt_id=prompt_id, index=index, token_ids=token_ids, **known))
            bar.update(1)
    reasons = Counter(row.reason.split(":")[0] for row in quarantined)
    write_rows(out / "quarantined.parquet", quarantined, Quarantined)
    if not prompts:
        origin = " ".join(filter(None, [source["name"], *map(source["params"].get, ("path", "dataset"))]))
        raise DataError(f"prompts {spec['name']}: none of items {indices.start} to {indices.stop - 1} of {origin} can "
                        f"be used ({dict(reasons) or 'the source has no such items'}); "
                        f"{'for example ' + quarantined[0].reason + '; ' if quarantined else ''}"
                        "look at first, count and max_prompt_tokens")
    if "train" in inputs:
        refuse_overlap(prompts, read_rows(inputs["train"] / "prompts.parquet", Prompt), spec["name"])
    write_rows(out / "prompts.parquet", prompts, Prompt)
    tokenizer.save_pretrained(out / "tokenizer")
    lengths = [len(p.token_ids) for p in prompts]
    return {"prompts": len(prompts), "quarantined": len(quarantined),
            "length_median_tokens": statistics.median(lengths), "length_max_tokens": max(lengths),
            **{f"quarantined_{name}": n for name, n in sorted(reasons.items())}}


def join_prompts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: the prompts of several sources as one, in the order of the spec's `sources`; ids say which is whose."""
    parts = [inputs[name] for name in spec["sources"]]
    for file, row_type in (("prompts.parquet", Prompt), ("quarantined.parquet", Quarantined)):
        write_rows(out / file, [row for part in parts for row in read_rows(part / file, row_type)], row_type)
    shutil.copytree(parts[0] / "tokenizer", out / "tokenizer")
    prompts = read_rows(out / "prompts.parquet", Prompt)
    return {"prompts": len(prompts), **{f"prompts_{name}": n for name, n in sorted(
        Counter(source_of(prompt.prompt_id) for prompt in prompts).items())}}


def refuse_overlap(prompts: list[Prompt], train: list[Prompt], name: str) -> None:
    """Raise DataError when a text of `prompts` is also trained on (compared without case and surplus spaces)."""
    seen = {" ".join(p.text.lower().split()): p.prompt_id for p in train}
    both = [(p.prompt_id, seen[text]) for p in prompts if (text := " ".join(p.text.lower().split())) in seen]
    if both:
        raise DataError(f"{len(both)} of {len(prompts)} prompts of {name} are also trained on, for example "
                        f"{both[0][0]} = {both[0][1]}; take disjoint index ranges (first, count)")
