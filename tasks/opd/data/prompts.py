"""How questions become prompts: a slice of a source, rendered by the student's chat template.

Ids are taken straight from the template and never from text that was rendered before. What cannot be used is
quarantined with its reason and counted, a truth that its grader cannot give 1 included. A held-out slice that repeats a
training text is refused.
"""
import json
import shutil
import statistics
from collections import Counter
from pathlib import Path

from tasks.opd.core.errors import DataError, OpdError
from tasks.opd.core.records import Prompt, Quarantined, read_rows, source_of, write_rows
from tasks.opd.data.contamination import FILE, contamination, refuse, said_to
from tasks.opd.data.fields import all_said
from tasks.opd.data.graders import grade
from tasks.opd.data.sources import SOURCES
from tasks.opd.models.templates import check_template, turn_left_out
from tasks.opd.models.tokenizers import control_tokens, encode, num_rows, render
from tasks.opd.store.artifacts import model_folder

ITEM = ("text", "answer", "solution", "domain")


def unfit(item: dict, tokenizer, special: list[str], limit: int, rows: int | None) -> tuple[str | None, list[int]]:
    """Why an item cannot be a prompt, its truth aside (None: it can), and its token ids."""
    if "invalid" in item:
        return f"invalid: {item['invalid']}", []
    if not item["text"].strip():
        return "empty", []
    history = item.get("history", [])
    written = [item["text"], *(turn["content"] for turn in history)]
    if injected := [token for token in special if any(token in text for text in written)]:
        return f"special_token: the text holds {', '.join(injected)}", []
    if why := turn_left_out(tokenizer, [turn["role"] for turn in history]):
        return f"template: the student's chat template {why}", []
    token_ids = encode(tokenizer, item["text"]) if item.get("plain") else render(tokenizer, item["text"], history)
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
    token = tokenizer.decode([max(ids)])
    return f"no_embedding: {token!r} is token {max(ids)}, the student's embedding has {rows} rows"


def ungradable(prompt: Prompt, grader: dict) -> str | None:
    """Why a grader does not give 1 to a prompt's own truth, said in a box and after "answer:"; None when it does.

    Such a prompt would train to the end and never be right, or end the run at its first rollout. Whatever a dataset's
    own scorer raises on an entry is a reason as well.
    """
    if json.loads(prompt.entry).get("answer", "") is None:  # its dataset judges answers, and has none to try
        return None
    try:
        reward, _ = grade(grader, prompt, f"\\boxed{{{prompt.answer}}}\nanswer: {prompt.answer}")
    except OpdError:
        raise
    except Exception as error:
        return f"truth: the grader {grader['name']} fails on {prompt.answer[:100]!r}: {type(error).__name__}: {error}"
    if reward == 1:
        return None
    return (f"truth: the grader {grader['name']} gives {reward:g} to the truth {prompt.answer[:100]!r} itself; "
            "mend the truth, or take another grader")


def make_prompts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: prompts `first` .. `first + count` of a source, rendered for the student, with its tokenizer beside them.

    Their domain is the source's own unless the spec names one. With a grader, each truth is asked of it.

    Raises: DataError when none is fit or more than `max_quarantined` of them are not, when a text also stands in the
    `train` prompts, and for a chat template that does not show the question.
    """
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model_folder(inputs["student"]), local_files_only=True)
    limit, rows = min(spec["max_prompt_tokens"], spec["context_tokens"] - 1), num_rows(model_folder(inputs["student"]))
    check_template(tokenizer)
    source, special = spec["source"], control_tokens(tokenizer)
    indices = range(spec["first"], spec["first"] + spec["count"])
    prompts, quarantined = [], []
    with session.progress(spec["count"], f"prompts {spec['name']}", "prompts") as bar:
        for index, item in zip(indices, SOURCES[source["name"]](indices, **source["params"])):
            reason, token_ids = unfit(item, tokenizer, special, limit, rows)
            prompt_id = f"{spec['name']}:{index}"
            prompt = None if reason else prompt_of(item, prompt_id, index, token_ids, spec["domain"])
            if prompt and spec["grader"] and not item.get("plain"):
                reason = ungradable(prompt, spec["grader"])
            if reason:
                quarantined.append(Quarantined(item_id=prompt_id, reason=reason, text=item["text"][:1000]))
            else:
                prompts.append(prompt)
            bar.update(1)
    reasons = Counter(row.reason.split(":")[0] for row in quarantined)
    write_rows(out / "quarantined.parquet", quarantined, Quarantined)
    refuse_many(spec, len(prompts), quarantined)
    known = apart_from(inputs["train"], prompts, spec, out) if "train" in inputs else {}
    write_rows(out / "prompts.parquet", prompts, Prompt)
    tokenizer.save_pretrained(out / "tokenizer")
    lengths = [len(p.token_ids) for p in prompts]
    return {"prompts": len(prompts), "quarantined": len(quarantined),
            "length_median_tokens": statistics.median(lengths), "length_max_tokens": max(lengths),
            **known, **{f"quarantined_{name}": n for name, n in sorted(reasons.items())}}


def apart_from(train: Path, prompts: list[Prompt], spec: dict, out: Path) -> dict[str, float]:
    """What prompts share with those trained on, as numbers; out/FILE has examples. Raises: DataError for too much."""
    trained = read_rows(train / "prompts.parquet", Prompt)
    refuse_overlap(prompts, trained, spec["name"])
    found = refuse_contaminated(prompts, trained, spec)
    (out / FILE).write_text(json.dumps(found))
    return {name: value for name, value in found.items() if name != "examples"}


def prompt_of(item: dict, prompt_id: str, index: int, token_ids: list[int], domain: str) -> Prompt:
    """An item that is fit, as a prompt."""
    known = {name: item[name] for name in ITEM} | ({"domain": domain} if domain else {})
    history = json.dumps(item["history"]) if item.get("history") else ""
    return Prompt(prompt_id=prompt_id, index=index, token_ids=token_ids, entry=json.dumps(item["entry"]),
                  history=history, **known)


def refuse_many(spec: dict, num_prompts: int, quarantined: list[Quarantined]) -> None:
    """Raise DataError when no item can be used, or when more than the share `max_quarantined` cannot."""
    source, first, last = spec["source"], spec["first"], spec["first"] + spec["count"] - 1
    origin = " ".join(filter(None, [source["name"], *map(source["params"].get, ("path", "dataset"))]))
    reasons = dict(Counter(row.reason.split(":")[0] for row in quarantined))
    example = f"for example {quarantined[0].item_id}: {quarantined[0].reason}; " if quarantined else ""
    if not num_prompts:
        raise DataError(f"prompts {spec['name']}: none of items {first} to {last} of {origin} can be used "
                        f"({reasons or 'the source has no such items'}); {example}look at first, count and "
                        "max_prompt_tokens")
    if len(quarantined) > spec["max_quarantined"] * (num_prompts + len(quarantined)):
        raise DataError(f"prompts {spec['name']}: {len(quarantined)} of {num_prompts + len(quarantined)} items of "
                        f"{origin} cannot be used ({reasons}), more than max_quarantined {spec['max_quarantined']}; "
                        f"{example}mend them, or raise max_quarantined")


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
    """Raise DataError when a question of `prompts` is also one of `train` (without case and surplus spaces)."""
    seen = {asked_text(prompt): prompt.prompt_id for prompt in train}
    both = [(p.prompt_id, seen[text]) for p in prompts if (text := asked_text(p)) in seen]
    if both:
        raise DataError(f"{len(both)} of {len(prompts)} prompts of {name} are also trained on or tested, for example "
                        f"{both[0][0]} = {both[0][1]}; take disjoint index ranges (first, count)")


def refuse_contaminated(prompts: list[Prompt], train: list[Prompt], spec: dict) -> dict:
    """What `contamination` says of a benchmark's questions and of the questions and solutions trained on.

    Raises: DataError when a larger share than the spec's `max_contaminated` are known by their words.
    """
    said = {prompt.prompt_id: all_said(prompt.turns, prompt.text) for prompt in prompts}
    found = contamination({spec["name"]: said}, said_to(train))[spec["name"]]
    refuse(spec["name"], found, said[found["examples"][0]] if found["examples"] else "", spec["max_contaminated"])
    return found


def asked_text(prompt: Prompt) -> str:
    """All that a prompt asks, its earlier messages included, without case and surplus spaces."""
    return " ".join(all_said(prompt.turns, prompt.text).lower().split())
