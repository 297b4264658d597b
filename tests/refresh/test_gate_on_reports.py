"""The gate on real reports: tiny models answer, and the truth of a benchmark is what one of them says.

So the model `told` has every answer of its benchmark right and another one hardly any, without training either.
"""
import json
from types import SimpleNamespace

import pytest

from tasks.bootstrap import make_models
from tasks.evaluate import evaluate_student
from tasks.opd.core.records import Sample, read_rows
from tasks.opd.data import tiny
from tasks.opd.data.answers import final_text, trimmed
from tasks.opd.recipe import loading
from tasks.opd.recipe.refreshes import Gate
from tasks.opd.recipe.schema import Benchmark
from tasks.opd.refresh import models
from tasks.opd.refresh.evidence import gathered
from tasks.opd.refresh.gate import checks_of, failures, passed
from tasks.opd.refresh.rows import Row
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import model_folder
from tasks.prompts import make_prompts
from tasks.workers import pools

PROBLEMS = [tiny.problem(index, seed=5).text for index in range(40)]
PAIR = ["workers=inline", "pair.student={name: random, draw: 7}", "pair.teacher={name: random, draw: 3}"]


def benchmark(folder, name: str, truths: list[str]) -> Benchmark:
    """The problems with these answers."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in zip(PROBLEMS, truths)))
    return Benchmark.model_validate({
        "name": name, "source": {"name": "jsonl", "path": str(file)}, "count": len(PROBLEMS), "max_prompt_tokens": 64,
        "grader": {"name": "exact", "ignore_case": False},
        "sampling": {"temperature": 0.0, "max_new_tokens": 8}})


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Two models, their reports on what the first says (`student's`) and on what the second says (`teacher's`)."""
    with pytest.MonkeyPatch.context() as patch, pools.for_run(SimpleNamespace(workers="inline")) as pool:
        patch.setenv("OPD_HOME", str(tmp_path_factory.mktemp("home")))
        recipe, folder = loading.load("opd_reverse_kl", PAIR), tmp_path_factory.mktemp("benchmarks")
        made = make_models.fn(recipe.pair, {"student", "teacher"}, pool)

        def asked(model, benchmarks):
            prompts = {b.name: make_prompts.fn(b, made[model], pool, context_tokens=320, use="test")
                       for b in benchmarks}
            return evaluate_student.fn(recipe.model_copy(update={"benchmarks": benchmarks}), made[model], prompts, pool,
                                       when="final")[0]
        blank = benchmark(folder, "blank", ["?"] * len(PROBLEMS))
        said = {name: [trimmed(final_text(sample.text)) for sample in read_rows(
            asked(name, [blank])["blank"].path / "samples.parquet", Sample)] for name in made}
        both = [benchmark(folder, f"{name}s", said[name]) for name in made]
        yield SimpleNamespace(made=made, reports={name: asked(name, both) for name in made},
                              home=artifacts.home())


def judged(told, champion: str, candidate: str, target: str, *, rows=(), retention=()):
    """The table of a candidate against a champion."""
    rows = {row.row_id: row for row in (Row(text=text, answer="", solution=None, entry={}, domain="") for text in rows)}
    made = told.made[candidate]
    names = {target, *retention}
    start, end = ({name: told.reports[model][name] for name in names} for model in (champion, candidate))
    found = gathered(start=start, end=end, champion=model_folder(told.made[champion].path), checkpoint=made,
                     kept=models.keep("nightly", made), rows=rows, frozen=names, ngram=13, place=made.path)
    return checks_of(found, Gate(target=target, retention=dict.fromkeys(retention, 0.05), truncated_margin=0.5))


@pytest.fixture(autouse=True)
def there(told, monkeypatch):
    """The home of those reports."""
    monkeypatch.setenv("OPD_HOME", str(told.home))


def test_a_better_candidate_passes(told):
    checks = judged(told, "student", "teacher", "teachers", rows=["Ada in Athens has 12 figs. How many figs?"])
    assert passed(checks), failures(checks)
    assert checks[0].value.startswith("+")


def test_a_worse_candidate_is_refused(told):
    assert failures(judged(told, "teacher", "student", "teachers")).startswith("target/teachers -")


def test_a_forgetting_candidate_is_refused(told):
    stopped = failures(judged(told, "student", "teacher", "teachers", retention=["students"]))
    assert stopped.startswith("retention/students -") and "target" not in stopped


def test_a_candidate_that_was_trained_on_a_benchmarks_question_is_refused(told):
    leaked = "Please say. " + PROBLEMS[7].upper()
    assert failures(judged(told, "student", "teacher", "teachers", rows=[leaked])).startswith("contamination 1 prompts")


def test_a_candidate_that_cannot_be_told_from_the_champion_is_refused(told):
    assert failures(judged(told, "student", "student", "students")) == "target/students +0.0 [+0.0 +0.0], wanted > +0.0"


def test_weights_that_are_not_those_that_answered_are_refused(told):
    kept = models.keep("nightly", told.made["teacher"])
    (kept / "config.json").rename(kept / "config.old")
    try:
        stopped = failures(judged(told, "student", "teacher", "teachers"))
    finally:
        (kept / "config.old").rename(kept / "config.json")
    assert stopped.startswith("digest config.json, wanted")
