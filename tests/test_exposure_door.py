"""Evaluating a checkpoint looks at all it was trained on: recorded with its numbers, refused above the limit."""
import json

import pytest

from tasks.exposure import exposure_of
from tasks.opd.core.errors import DataError
from tasks.opd.recipe import loading
from tasks.opd.store.artifacts import find, home, read_record
from tasks.opd.store.trained import trained_on
from tasks.workers import pools
from tests.evaluation.report.made_runs import rollout, run

QUESTION = " ".join(["one two three one one two"] * 3)
COPY = rollout("0:p:0:teacher:0", [1, 2, 3, 1, 1, 2] * 3, author=[1] * 18, origin="teacher")


def exposed(tmp_path, other: str = "what else", **options):
    """The counts of a run of two rounds whose benchmark asks QUESTION and another."""
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in (QUESTION, other)))
    limit, when = options.pop("limit", 1.0), options.pop("when", "final")
    recipe = loading.load("gkd", ["workers=inline", f"benchmarks=[{{name: own, source: {{name: jsonl, path: {file}}}, "
                                  f"count: 2, max_prompt_tokens: 64, grader: exact, max_contaminated: {limit}}}]"])
    run(**options)
    with pools.for_run(recipe) as pool:
        return exposure_of(recipe, find("checkpoint", "cgkd01"), pool, when=when, step=2)


def test_every_rounds_rollouts_and_their_prompts_are_what_a_checkpoint_was_trained_on():
    run(refined=[COPY])
    found = trained_on(find("checkpoint", "cgkd01"))
    assert {name: one.kind for name, one in found.items()} == {"rollouts:1": "refined", "rollouts:0": "refined",
                                                               "prompts": "prompts"}
    assert trained_on(find("model", "student")) == {}


def test_what_training_knows_of_a_benchmark_stands_with_its_numbers_and_in_the_store(tmp_path):
    assert exposed(tmp_path, refined=[COPY]) == {"own": {"trained_overlapping_share": 0.5,
                                                         "trained_contaminated_share": 0.5}}
    [made] = [read_record(path) for path in (home() / "artifacts/exposure").glob("[!.]*")]
    assert made["counts"]["own_contaminated_share"] == 0.5 and made["counts"]["tiny_contaminated_share"] == 0


def test_too_much_is_refused_before_an_answer_is_written(tmp_path):
    with pytest.raises(DataError, match="50% of the questions of own stand in what is trained on"):
        exposed(tmp_path, refined=[COPY], limit=0.4)


def test_an_edited_file_is_looked_at_again(tmp_path):
    shares = [exposed(tmp_path, refined=[COPY], other=other)["own"]["trained_overlapping_share"]
              for other in ("what else", QUESTION + " one")]
    assert shares == [0.5, 1.0]


def test_between_rounds_nothing_is_read(tmp_path):
    assert exposed(tmp_path, refined=[COPY], limit=0.4, when="round") == {}
