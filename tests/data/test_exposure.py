"""What a run was trained on, held against benchmarks: prompts, solutions and rollouts, whoever wrote them."""
import json

import pytest

from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt, Rollout, write_rows
from tasks.opd.data.contamination import FILE
from tasks.opd.data.exposure import measure_exposure
from tests.evaluation.report.made_runs import rollout, write_tokenizer

ASKED = ["one two three one two two three three one one two one three two", "one one", "three two one"]
IDS = {"one": 1, "two": 2, "three": 3}


def tokens(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


@pytest.fixture
def measured(tmp_path):
    """What the stage finds where these rollouts and this solution were trained on."""
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in ASKED))
    source = {"name": "jsonl", "params": {"path": str(tmp_path / "b.jsonl")}}

    def measure(*written: Rollout, solution: str | None = None, limit: float | None = None,
                gone: bool = False) -> tuple[dict, dict]:
        for name in ("prompts", "written", "out"):
            (tmp_path / name).mkdir()
        write_tokenizer(tmp_path / "prompts")
        write_rows(tmp_path / "prompts" / "prompts.parquet",
                   [Prompt(prompt_id="p:0", index=0, text="one", token_ids=[1], answer="1", solution=solution,
                           entry="{}", domain="")], Prompt)
        write_rows(tmp_path / "written" / "rollouts.parquet", [*written], Rollout)
        spec = {"benchmarks": {"b": {"source": source, "first": 0, "count": 3, "max_contaminated": limit}},
                "not_at_hand": ["aime24"]}
        spec["benchmarks"] |= {"gone": {**spec["benchmarks"]["b"], "source": {**source, "params": {"path": "/gone"}}}
                               } if gone else {}
        counts = measure_exposure({"prompts": tmp_path / "prompts", "rollouts:0": tmp_path / "written"}, spec,
                                  tmp_path / "out", None)
        return counts, json.loads((tmp_path / "out" / FILE).read_text())
    return measure


def test_a_question_that_a_teacher_wrote_into_a_rollout_is_found_however_often_it_did(measured):
    copied = [rollout(f"r{i}", tokens(ASKED[0]), author=[1] * 14, origin="teacher") for i in range(20)]
    counts, found = measured(*copied, rollout("other", [3, 3, 3]))
    assert counts == {"benchmarks_not_checked": 1, "b_overlapping_share": 1 / 3, "b_contaminated_share": 1 / 3}
    assert found["benchmarks"]["b"]["examples"] == ["b:0"] and found["not_checked"] == ["aime24"]


def test_a_question_that_stands_in_a_worked_solution_is_found(measured):
    assert measured(rollout("r", [1]), solution=f"We are asked: {ASKED[0]}. So")[0]["b_contaminated_share"] == 1 / 3


def test_what_shares_nothing_is_not_contaminated(measured):
    assert measured(rollout("r", [2, 2, 2]), solution="two")[0]["b_overlapping_share"] == 0


def test_more_than_the_limit_is_refused(measured):
    with pytest.raises(DataError, match="33% of the questions of b .* b:0: 'one two three"):
        measured(rollout("r", tokens(ASKED[0])), limit=0.3)


def test_a_benchmark_that_cannot_be_read_is_named_and_ends_the_run_only_where_it_has_a_limit(measured):
    counts, file = measured(gone=True)
    assert (counts["benchmarks_not_checked"], file["not_checked"], set(file["benchmarks"])) == (
        2, ["aime24", "gone"], {"b"})


def test_one_with_a_limit_that_cannot_be_read_is_an_error(measured):
    with pytest.raises(DataError, match="gone"):
        measured(gone=True, limit=0.5)
