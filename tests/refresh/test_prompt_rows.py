"""What is new: by contents, never by place; what is held out; what is left out."""
import json

import pytest

from tasks.opd.core.errors import DataError
from tasks.opd.recipe.schema import Slot
from tasks.opd.refresh import rows
from tasks.opd.refresh.rows import Row, chosen, is_held_out, read_rows, scan, source_of, watermark, write_rows

FIGS = {"question": "How many figs?", "answer": "4"}
PEARS = {"question": "How many pears?", "answer": "7"}
PLUMS = {"question": "How many plums?", "answer": "9"}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "incoming"
    place.mkdir()
    return place


def write(file, *entries):
    file.write_text("".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries))


def found(folder, seen=(), **changes):
    source = Slot(name="jsonl", params={"path": str(folder)})
    return scan(source, set(seen), **{"at_most": 100, "held_out_share": 0.0, "asked": set(), **changes})


def texts(some):
    return [row.text for row in some]


def test_all_files_of_a_folder_are_read_by_name_and_their_rows_are_new_once(folder):
    write(folder / "b.jsonl", PLUMS)
    write(folder / "a.jsonl", FIGS, PEARS)
    write(folder / "notes.txt", PLUMS)
    first = found(folder)
    assert texts(first.new) == ["How many figs?", "How many pears?", "How many plums?"]
    assert found(folder, [row.row_id for row in first.new]).new == []


def test_a_copy_another_order_and_another_file_are_not_new(folder):
    write(folder / "a.jsonl", FIGS, PEARS, FIGS, {**PEARS, "question": "  how many  PEARS? "})
    first = found(folder)
    assert texts(first.new) == ["How many figs?", "How many pears?"]
    seen = {row.row_id for row in first.new}
    write(folder / "a.jsonl", PEARS, FIGS)
    (folder / "a.jsonl").rename(folder / "z.jsonl")
    assert found(folder, seen).new == []


def test_of_an_edited_file_the_edited_rows_are_new_and_a_file_that_vanished_takes_nothing_back(folder):
    write(folder / "a.jsonl", FIGS, PEARS)
    seen = {row.row_id for row in found(folder).new}
    write(folder / "a.jsonl", FIGS, {**PEARS, "answer": "8"})
    assert [row.answer for row in found(folder, seen).new] == ["8"]
    (folder / "a.jsonl").unlink()
    assert found(folder, seen).new == []


def test_a_line_that_is_half_written_is_counted_and_new_once_it_is_whole(folder):
    write(folder / "a.jsonl", FIGS, json.dumps(PEARS)[:20])
    first = found(folder)
    assert texts(first.new) == ["How many figs?"] and first.skipped == {"invalid": 1}
    write(folder / "a.jsonl", FIGS, PEARS)
    assert texts(found(folder, {row.row_id for row in first.new}).new) == ["How many pears?"]


def test_questions_of_benchmarks_and_empty_ones_are_left_out_with_their_reason(folder):
    write(folder / "a.jsonl", FIGS, PEARS, {"question": " ", "answer": "1"})
    result = found(folder, asked={"how many pears?"})
    assert texts(result.new) == ["How many figs?"] and result.skipped == {"asked in a benchmark": 1, "empty": 1}


def test_what_exceeds_the_limit_stays_new(folder):
    write(folder / "a.jsonl", FIGS, PEARS, PLUMS)
    first = found(folder, at_most=2)
    assert len(first.new) == 2
    assert texts(found(folder, {row.row_id for row in first.new}, at_most=2).new) == ["How many plums?"]


def test_an_endless_source_goes_on_where_it_was_left():
    tiny = Slot(name="tiny", params={"seed": 1})
    first = scan(tiny, set(), at_most=50, held_out_share=0.2, asked=set())
    # 50 to train on; of all looked at about a fifth are held out: 12.5 expected, standard deviation 4
    assert len(first.new) == 50 and 4 <= len(first.held_out) <= 24
    seen = {row.row_id for row in [*first.new, *first.held_out]}
    second = scan(tiny, seen, at_most=50, held_out_share=0.2, asked=set())
    assert len(second.new) == 50 and not seen & {row.row_id for row in [*second.new, *second.held_out]}


def test_a_question_is_held_out_whatever_its_answer_and_the_share_is_kept():
    asked = [f"How many figs has number {i}?" for i in range(4000)]
    held = [text for text in asked if is_held_out(text, 0.1)]
    assert 320 <= len(held) <= 480                   # 400 expected, standard deviation 19
    assert all(is_held_out(text.upper() + "  ", 0.1) for text in held)
    assert not any(is_held_out(text, 0.0) for text in asked)


def test_a_missing_source_is_an_error_that_names_it(folder):
    with pytest.raises(DataError, match="neither a file nor a folder"):
        found(folder / "nowhere")


def test_rows_are_written_and_read_and_named_as_a_source(tmp_path):
    some = [Row(text="a?", answer="1", solution="b", entry={"start": 3}, domain="four"),
            Row(text="c?", answer="2", solution=None, entry={}, domain="five")]
    write_rows(tmp_path / "rows.jsonl", some)
    assert list(read_rows(tmp_path / "rows.jsonl").values()) == some
    named = source_of(tmp_path / "rows.jsonl", some)
    assert "solution" not in named and source_of(tmp_path / "rows.jsonl", some[:1])["solution"] == "solution"
    params = {key: value for key, value in named.items() if key != "name"}
    items = [*rows.SOURCES[named["name"]](range(9), **params)]
    assert [item["entry"] for item in items] == [{"start": 3}, {}]
    assert [item["domain"] for item in items] == ["four", "five"]


def test_a_watermark_and_a_choice_do_not_depend_on_the_order_of_rows():
    ids = [f"{i:032x}" for i in range(20)]
    assert watermark(ids) == watermark(reversed(ids)) != watermark(ids[1:])
    assert chosen(ids, 5, "anchors", 1) == chosen(ids[::-1], 5, "anchors", 1) != chosen(ids, 5, "anchors", 2)


def test_plain_text_is_no_prompt_to_be_graded(folder):
    write(folder / "a.jsonl", {"text": "Ada has figs and pears and plums."})
    result = scan(Slot(name="text", params={"path": str(folder)}), set(), at_most=9, held_out_share=0.0, asked=set())
    assert result.new == [] and result.skipped == {"plain text": 1}


def test_a_text_with_a_line_separator_of_unicode_is_read_back(folder, tmp_path):
    write(folder / "a.jsonl", {**FIGS, "question": "How many\u2028figs?\x85"})
    new = found(folder).new
    write_rows(tmp_path / "trained.jsonl", new)
    assert list(read_rows(tmp_path / "trained.jsonl").values()) == new and len(new) == 1


def test_messages_before_a_question_are_kept_and_make_it_another(folder, tmp_path):
    turns = [{"role": "user", "content": "Ada has 4 figs."}, {"role": "assistant", "content": "Yes."},
             {"role": "user", "content": "How many figs?"}]
    write(folder / "a.jsonl", FIGS, {**FIGS, "question": turns}, {**FIGS, "question": [turns[0], turns[2]]})
    new = found(folder).new
    assert len({row.row_id for row in new}) == 3 and [row.history for row in new] == [[], turns[:2], turns[:1]]
    write_rows(tmp_path / "trained.jsonl", new)
    assert list(read_rows(tmp_path / "trained.jsonl").values()) == new
    again = source_of(tmp_path / "trained.jsonl", new)
    assert scan(Slot.model_validate(again), set(), at_most=9, held_out_share=0.0, asked=set()).new == new
    assert found(folder, asked={"how many figs?"}).skipped == {"asked in a benchmark": 1}
