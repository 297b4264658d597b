"""avg@k and pass@k by hand, and the evaluation stage on a tiny model."""
import json
import shutil
from itertools import combinations

import pytest

from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Sample, read_rows
from tasks.opd.data.prompts import make_prompts
from tasks.opd.engines.pool import Session
from tasks.opd.evaluation.benchmarks import avg_at, evaluate, pass_at, summary
from tasks.opd.makers.models import make_model

ENGINE = {"name": "torch", "dtype": "float32", "batch_tokens": 4096}


def test_avg_is_the_mean_reward():
    assert avg_at([1.0, 0.0, 0.0, 0.5]) == 0.375


def test_pass_at_by_hand():
    # 4 samples, 1 right: one draw finds it in 1 of 4, two draws in 3 of 6 pairs, four draws always
    assert pass_at(4, 1, 1) == 0.25 and pass_at(4, 1, 2) == 0.5 and pass_at(4, 1, 4) == 1.0
    # 10 samples, 3 right, 5 drawn: 1 - C(7,5)/C(10,5) = 1 - 21/252
    assert pass_at(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at(5, 0, 5) == 0.0 and pass_at(5, 5, 1) == 1.0


def test_pass_at_is_the_share_of_subsets_with_a_right_one():
    right = [True, True, False, False, False, False]
    subsets = list(combinations(right, 3))
    assert pass_at(6, 2, 3) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="pass@5 of 4"):
        pass_at(4, 1, 5)


def test_summary_averages_over_questions_and_counts_only_full_rewards_as_right():
    # question a: avg 0.5, pass@1 0.5, pass@2 1; question b: avg 0.25, none right (0.5 < 1)
    assert summary({"a": [1.0, 0.0], "b": [0.5, 0.0]}, [1, 2]) == {"avg": 0.375, "pass@1": 0.25, "pass@2": 0.5}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random tiny model and six prompts for it."""
    root, session = tmp_path_factory.mktemp("world"), Session()
    (root / "student").mkdir(), (root / "prompts").mkdir()
    make_model({}, {"maker": {"name": "random", "params": {}}, "seed": 0}, root / "student", session)
    source = {"name": "tiny", "params": {}}
    make_prompts({"student": root / "student"}, {"source": source, "name": "held_out", "first": 0, "count": 6,
                 "max_prompt_tokens": 64, "domain": "", "context_tokens": 128, "max_quarantined": 0.5,
                 "grader": {"name": "tiny", "params": {}}}, root / "prompts", session)
    return root


def spec(**changes) -> dict:
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}
    benchmark = {"name": "held_out", "samples": 3, "pass_at": [1, 3], "sampling": sampling,
                 "grader": {"name": "tiny", "params": {}}}
    return {"benchmark": benchmark, "engine": ENGINE, "seed": 0, "context_tokens": 128, "folder": "model", **changes}


def run(world, out, **changes):
    out.mkdir()
    with Session() as session:
        return evaluate({"student": world / "student", "prompts": world / "prompts"}, spec(**changes), out, session)


def test_every_sample_is_kept_and_the_report_says_what_produced_it(world, tmp_path):
    counts = run(world, tmp_path / "a")
    samples = read_rows(tmp_path / "a" / "samples.parquet", Sample)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    asked = [(f"held_out:{p}", i) for p in range(6) for i in range(3)]
    assert [(s.prompt_id, s.sample_index) for s in samples] == asked
    assert counts["samples"] == 18 and counts["prompts"] == 6 and counts["avg"] == 0 and counts["pass@3"] == 0
    assert counts["truncated_share"] == sum(s.finish_reason == "length" for s in samples) / 18
    assert report["sampling"]["max_new_tokens"] == 12 and report["versions"]["torch"]
    assert counts["student_written_tokens"] == sum(len(s.token_ids) for s in samples) > 18
    assert len(report["template_sha256"]) == 64 and report["mean_reward"]["held_out:0"] == 0
    assert all(s.feedback.startswith("line 1: ") for s in samples)  # a random model's first line is wrong


def test_a_report_says_what_its_questions_share_with_those_trained_on_where_somebody_looked(world, tmp_path):
    assert run(world, tmp_path / "a")["leakage_share"] == 0 and not (world / "prompts" / "contamination.json").exists()
    shutil.copytree(world, tmp_path / "w")
    (tmp_path / "w" / "prompts" / "contamination.json").write_text(json.dumps(
        {"overlapping_share": 0.5, "contaminated_share": 0.25, "examples": ["held_out:0"]}))
    counts = run(tmp_path / "w", tmp_path / "b")
    assert (counts["overlapping_share"], counts["contaminated_share"]) == (0.5, 0.25) and "examples" not in counts


def test_samples_follow_from_the_seed_alone(world, tmp_path):
    run(world, tmp_path / "a"), run(world, tmp_path / "b"), run(world, tmp_path / "c", seed=1)
    a, b, c = ([s.token_ids for s in read_rows(tmp_path / n / "samples.parquet", Sample)] for n in "abc")
    assert a == b and a != c and a[0] != a[1]


def test_a_completion_that_cannot_fit_is_refused(world, tmp_path):
    with pytest.raises(DataError, match="more than the context of 32"):
        run(world, tmp_path / "a", context_tokens=32)
