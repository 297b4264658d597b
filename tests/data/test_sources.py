"""Prompts: sources give the same items always, the template is the student's, and what is unfit says why."""
import errno
import json
import os

import pytest

from tasks.opd.core.errors import DataError, DiskFull
from tasks.opd.core.records import Prompt, Quarantined, read_rows
from tasks.opd.data.prompts import join_prompts, make_prompts
from tasks.opd.data.sources import SOURCES
from tasks.opd.engines.pool import Session
from tasks.opd.makers.models import make_model
from tasks.opd.models.tokenizers import render, tokenizer_of


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    out = tmp_path_factory.mktemp("student")
    make_model({}, {"maker": {"name": "random", "params": {}}, "seed": 0}, out, Session())
    return out


def make(student, out, source, *, name="train", first=0, count=4, limit=64, train=None, domain="", grader=None,
         max_quarantined=1.0, max_contaminated=0.2, **params):
    """Run the stage; its counts, prompts and quarantined."""
    out.mkdir()
    inputs = {"student": student} | ({"train": train} if train else {})
    counts = make_prompts(inputs, {"source": {"name": source, "params": params}, "name": name, "first": first,
                          "count": count, "max_prompt_tokens": limit, "context_tokens": 128, "domain": domain,
                          "max_quarantined": max_quarantined, "max_contaminated": max_contaminated,
                          "grader": grader and {"name": grader, "params": {}}}, out, Session())
    return counts, read_rows(out / "prompts.parquet", Prompt), read_rows(out / "quarantined.parquet", Quarantined)


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_tiny_prompts_are_rendered_by_the_template_and_carry_truth_and_solution(student, tmp_path):
    counts, prompts, _ = make(student, tmp_path / "p", "tiny", first=5, count=3)
    tokenizer = tokenizer_of(tmp_path / "p")
    assert [p.prompt_id for p in prompts] == ["train:5", "train:6", "train:7"]
    first = prompts[0]
    assert tokenizer.decode(first.token_ids) == f"<|user|>{first.text}<|assistant|>"
    assert first.solution.endswith(f"answer: {first.answer}") and first.domain in ("four", "five")
    lengths = sorted(len(p.token_ids) for p in prompts)
    assert counts["length_max_tokens"] == lengths[-1] and counts["length_median_tokens"] == lengths[1]


def test_a_token_without_a_row_in_the_students_embedding_is_quarantined(tmp_path):
    """An added token whose id no embedding has: looked up, it is an IndexError in the middle of a run."""
    from tests.tiny_models import tiny_llama, write_tokenizer
    tiny_llama().save_pretrained(tmp_path / "s" / "model")
    write_tokenizer(tmp_path / "s" / "model", vocabulary=23)
    asked = [{"question": text, "answer": "1"} for text in ("w5 w6", "w5 w21", "w7", "w19")]
    path = write_lines(tmp_path / "q.jsonl", *asked)
    counts, prompts, out = make(tmp_path / "s", tmp_path / "p", "jsonl", path=path)
    assert [p.token_ids for p in prompts] == [[5, 6], [7], [19]] and counts["quarantined_no_embedding"] == 1
    assert out[0].reason == "no_embedding: 'w21' is token 21, the student's embedding has 20 rows"
    rows = [{"question": "w7", "answer": "1", "working": "w22"}, {"question": "w7 w8", "answer": "1", "working": "w9"}]
    _, prompts, out = make(tmp_path / "s", tmp_path / "p2", "jsonl", count=2, solution="working",
                           path=write_lines(tmp_path / "solved.jsonl", *rows))
    assert [p.token_ids for p in prompts] == [[7, 8]] and "'w22' is token 22" in out[0].reason


def test_tiny_items_are_of_the_kind_that_is_asked_for():
    from tasks.opd.data import tiny
    item, = SOURCES["tiny"](range(5, 6), seed=2, num_steps=3, highest=29, largest=5)
    made = tiny.problem(5, 2, num_steps=3, highest=29, largest=5)
    assert (item["text"], item["solution"], item["domain"]) == (made.text, made.solution, "three")
    assert made.text != tiny.problem(5, 2, num_steps=3).text
    other, = SOURCES["tiny"](range(5, 6), seed=2, num_steps=3, highest=29, largest=5, question_first=True)
    asked = made.text[made.text.index("How many"):]
    assert other == item | {"text": f"{asked} {made.text.removesuffix(' ' + asked)}"}


def test_a_slice_is_the_same_whatever_slice_it_is_read_from():
    for name, params in (("tiny", {}), ("reasoning_gym", {"dataset": "gsm_symbolic"})):
        whole = list(SOURCES[name](range(8), **params))
        assert list(SOURCES[name](range(5, 8), **params)) == whole[5:]


def test_reasoning_gym_items_are_the_datasets_own_with_the_working_asked_for():
    import reasoning_gym
    own = reasoning_gym.create_dataset("gsm_symbolic", seed=3, size=10)
    plain = list(SOURCES["reasoning_gym"](range(4, 6), dataset="gsm_symbolic", seed=3, ask_for_working=False))
    asked = list(SOURCES["reasoning_gym"](range(4, 6), dataset="gsm_symbolic", seed=3))
    for i, before, after in zip((4, 5), plain, asked):
        assert before["text"] == own[i]["question"] and before["answer"] == own[i]["answer"]
        question = own[i]["question"].removesuffix(" Give the result as your final answer. Do not include units.")
        assert question != own[i]["question"] and after["text"].startswith(question + " Show your working")
        assert "Give the result" not in after["text"]


def test_unknown_reasoning_gym_dataset_is_refused_by_name():
    with pytest.raises(DataError, match="no dataset 'gsm'.*gsm_symbolic"):
        list(SOURCES["reasoning_gym"](range(1), dataset="gsm"))




def test_what_is_unfit_is_quarantined_with_its_reason_and_counted(student, tmp_path):
    path = write_lines(tmp_path / "q.jsonl", {"q": "How many figs?", "a": "4"}, {"q": "  ", "a": "4"},
                       {"q": "has " * 70, "a": "4"}, {"q": "figs<|end|><|user|>", "a": "4"}, {"q": "How many?"},
                       "{broken", "[1]")
    counts, prompts, bad = make(student, tmp_path / "p", "jsonl", count=9, path=path, question="q", answer="a")
    assert [p.prompt_id for p in prompts] == ["train:0"]
    reasons = {row.item_id: row.reason for row in bad}
    assert reasons["train:1"] == "empty"
    assert reasons["train:2"].startswith("too_long: ") and "at most 64" in reasons["train:2"]
    assert reasons["train:3"] == "special_token: the text holds <|end|>, <|user|>"
    assert "has no 'a'" in reasons["train:4"] and "not JSON" in reasons["train:5"] and "object" in reasons["train:6"]
    assert {k: v for k, v in counts.items() if "quarantined" in k} == {
        "quarantined": 6, "quarantined_empty": 1, "quarantined_invalid": 3, "quarantined_special_token": 1,
        "quarantined_too_long": 1}


def test_none_left_is_an_error_that_says_why(student, tmp_path):
    with pytest.raises(DataError, match="none of items 0 to 3 of tiny.*too_long': 4.*max_prompt_tokens"):
        make(student, tmp_path / "a", "tiny", limit=5)
    path = write_lines(tmp_path / "q.jsonl", {"question": "How many figs?", "answer": "4"})
    with pytest.raises(DataError, match="the source has no such items"):
        make(student, tmp_path / "b", "jsonl", first=1, path=path)
    with pytest.raises(DataError, match="neither a file nor a folder"):
        make(student, tmp_path / "c", "jsonl", path=str(tmp_path / "missing.jsonl"))


def test_a_text_that_is_trained_on_is_refused_whatever_its_index(student, tmp_path):
    make(student, tmp_path / "train", "tiny", count=6)
    _, apart, _ = make(student, tmp_path / "apart", "tiny", name="held_out", first=6, train=tmp_path / "train")
    assert len(apart) == 4
    with pytest.raises(DataError, match="1 of 4 prompts.*held_out:5 = train:5"):
        make(student, tmp_path / "over", "tiny", name="held_out", first=5, train=tmp_path / "train")
    same = write_lines(tmp_path / "q.jsonl", {"question": apart[0].text, "answer": "1"})
    make(student, tmp_path / "file", "jsonl", path=same, count=1)
    with pytest.raises(DataError, match="also trained on"):
        make(student, tmp_path / "again", "tiny", name="held_out", first=6, train=tmp_path / "file")


def test_without_a_template_the_text_is_encoded_as_it_stands(student):
    from tasks.opd.data import tiny
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = None
    assert render(tokenizer, "How many figs?") == tokenizer.encode("How many figs?")


def test_gsm_symbolic_comes_with_its_worked_solution():
    row = next(iter(SOURCES["reasoning_gym"](range(1), dataset="gsm_symbolic")))
    assert row["solution"].endswith(f"The answer is {row['answer']}.") and "####" not in row["solution"]
    assert len(row["solution"].splitlines()) > 2
    assert next(iter(SOURCES["reasoning_gym"](range(1), dataset="chain_sum")))["solution"] is None


def test_plain_text_comes_in_windows_cut_at_spaces_and_only_a_documents_last_one_ends(tmp_path):
    path = write_lines(tmp_path / "notes.jsonl", {"text": "one two three four"}, {"text": "five"}, {"body": "six"})
    items = list(SOURCES["text"](range(10), path=path, opening_characters=4, window_characters=9))
    # "one two three four": 9 characters reach into "three", so the window is "one two"; the next is " three", as
    # " three four" has 11; what is joined again is the document
    assert [(item["text"], item.get("solution")) for item in items[:3]] == [
        ("one", " two"), (" thr", "ee"), (" fou", "r")]
    assert [item["entry"] for item in items[:4]] == [{"ends": False}, {"ends": False}, {"ends": True}, {"ends": True}]
    assert items[3]["text"] == "five" and items[3]["solution"] is None
    assert "no text at 'text'" in items[4]["invalid"]
    assert list(SOURCES["text"](range(1, 3), path=path, opening_characters=4, window_characters=9)) == items[1:3]


def test_plain_text_is_not_put_into_a_chat_template_and_takes_the_domain_it_is_given(student, tmp_path):
    path = write_lines(tmp_path / "notes.jsonl", {"text": "tom has 3 apples and tom buys 4 more"})
    _, prompts, _ = make(student, tmp_path / "p", "text", count=1, domain="notes", path=path, opening_characters=9)
    tokenizer = tokenizer_of(tmp_path / "p")
    assert prompts[0].token_ids == tokenizer.encode("tom has 3") and prompts[0].domain == "notes"
    assert tokenizer.encode(prompts[0].text + prompts[0].solution) == [
        *prompts[0].token_ids, *tokenizer.encode(prompts[0].solution)]


def test_several_sources_become_one_in_order_with_ids_that_say_whose(student, tmp_path):
    make(student, tmp_path / "a", "tiny", name="sums", count=3)
    path = write_lines(tmp_path / "q.jsonl", {"question": "2+2?", "answer": "4"}, {"question": " ", "answer": "4"})
    make(student, tmp_path / "b", "jsonl", name="asked", count=2, path=path)
    (tmp_path / "both").mkdir()
    counts = join_prompts({"sums": tmp_path / "a", "asked": tmp_path / "b"}, {"sources": ["sums", "asked"]},
                          tmp_path / "both", Session())
    joined = read_rows(tmp_path / "both" / "prompts.parquet", Prompt)
    assert [p.prompt_id for p in joined] == ["sums:0", "sums:1", "sums:2", "asked:0"]
    assert counts == {"prompts": 4, "prompts_asked": 1, "prompts_sums": 3}
    assert [q.item_id for q in read_rows(tmp_path / "both" / "quarantined.parquet", Quarantined)] == ["asked:1"]
    assert tokenizer_of(tmp_path / "both").get_vocab() == tokenizer_of(tmp_path / "a").get_vocab()


def test_hub_reads_a_local_folder_and_refuses_files_whose_columns_differ(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "a.jsonl", {"question": "2 + 3?", "answer": "5"})
    read = list(SOURCES["hub"](range(9), dataset=str(tmp_path / "data")))
    assert [(item["text"], item["answer"]) for item in read] == [("2 + 3?", "5")]
    write_lines(tmp_path / "data" / "a.jsonl", {"question": "2 + 4?", "answer": "6"})
    assert [item["answer"] for item in SOURCES["hub"](range(9), dataset=str(tmp_path / "data"))] == ["6"]
    write_lines(tmp_path / "data" / "b.jsonl", {"prompt": "?", "truth": 5})
    with pytest.raises(DataError, match="cannot be had"):
        list(SOURCES["hub"](range(9), dataset=str(tmp_path / "data")))


@pytest.mark.parametrize("number, name, kind", [
    (errno.ENOSPC, "", DiskFull), (errno.EACCES, "cache/one.lock", DiskFull),
    (errno.EACCES, "data/a.jsonl", DataError)])
def test_a_disk_that_does_not_take_a_dataset_is_not_the_datas_fault(tmp_path, monkeypatch, number, name, kind):
    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number), *([str(tmp_path / name)] if name else []))
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "a.jsonl", {"question": "2 + 3?", "answer": "5"})
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", refuse)
    with pytest.raises((DiskFull, DataError)) as caught:
        list(SOURCES["hub"](range(9), dataset=str(tmp_path / "data")))
    assert type(caught.value) is kind
    assert ("data cannot be kept in" in str(caught.value) and os.strerror(number) in str(caught.value)) == (
        kind is DiskFull)


def test_a_hub_row_without_the_named_column_is_quarantined_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "a.jsonl", {"prompt": [{"role": "user", "content": "2 + 3?"}], "answer": 5})
    read = {name: next(SOURCES["hub"](range(1), dataset=str(tmp_path / "data"), question=name))
            for name in ("question", "prompt")}
    assert "has no 'question'; it has ['answer', 'prompt']" in read["question"]["invalid"]
    assert (read["prompt"]["text"], read["prompt"]["answer"]) == ("2 + 3?", "5")
