"""The gate's checks, on numbers worked by hand."""
from dataclasses import replace

import pytest

from tasks.opd.recipe.refreshes import CHECKS, Gate
from tasks.opd.refresh import gate
from tasks.opd.refresh.evidence import Answers, Evidence, tokenizer_of
from tasks.opd.refresh.gate import checks_of, failures, from_json, passed, place_shown, to_json, to_markdown, to_text

NUM = 40


def answers(num_right: int, *, length: float = 10.0, truncated: float = 0.0, digest: str = "d", **counts) -> Answers:
    """The first `num_right` of NUM prompts right, one sample each, of which pass@2 says as much."""
    rewards = {f"p{i:02}": float(i < num_right) for i in range(NUM)}
    return Answers(rewards=rewards, pass_at={2: rewards}, model_digest=digest, place="somewhere",
                   asked={"prompts": "these", "seed": 0},
                   counts={"length_mean_tokens": length, "truncated_share": truncated, **counts})


def evidence(before: Answers, after: Answers, **changes) -> Evidence:
    """Champion's and candidate's answers on the benchmark `target`, and all else as it should be."""
    same = {"tokenizer.json": "a", "chat_template.jinja": "b"}
    return replace(Evidence(champion={"target": before}, candidate={"target": after}, champion_tokenizer=same,
                            candidate_tokenizer=same, contaminated={}, checkpoint_digest="d", differing=[],
                            place="here"), **changes)


def judged(found: Evidence, **changes) -> dict[str, gate.Check]:
    return {check.name: check for check in checks_of(found, Gate(target="target", **changes))}


def failed(found: Evidence, **changes) -> list[str]:
    return [name for name, check in judged(found, **changes).items() if not check.passed]


def test_a_candidate_that_is_better_passes_every_check():
    checks = checks_of(evidence(answers(10), answers(30)), Gate(target="target", retention={"target": 0.05}))
    assert [check.name for check in checks] == [
        "target/target", "retention/target", "pass_at/target@2", "truncation/target", "length/target", "tokenizer",
        "contamination", "same_questions", "digest"]
    assert passed(checks) and failures(checks) == ""
    # 20 of 40 prompts gain 1: +50 points; the interval's half width is about 1.96 sqrt(.25 / 40) = 15.5 points
    assert checks[0].value.startswith("+50.0 [+35.0 +65.0") or checks[0].value.startswith("+50.0 [+3")


def test_better_is_the_lower_end_of_the_interval_above_the_margin():
    assert failed(evidence(answers(10), answers(11))) == ["target/target"]         # one prompt of 40 tells nothing
    assert failed(evidence(answers(10), answers(10))) == ["target/target"]
    assert "target/target" in failed(evidence(answers(30), answers(10)))
    found = evidence(answers(10), answers(30))
    assert failed(found) == [] and failed(found, margin=0.4) == ["target/target"]


def test_parity_is_enough_only_where_it_is_allowed_and_answers_are_cheaper():
    same_but_short = evidence(answers(20, length=10.0), answers(20, length=8.0))
    assert failed(same_but_short) == ["target/target"]
    assert failed(same_but_short, parity_margin=0.05) == []
    assert failed(same_but_short, parity_margin=0.05, cheaper=0.25) == ["target/target"]
    worse = evidence(answers(20), answers(10, length=8.0))
    assert "target/target" in failed(worse, parity_margin=0.05)


def test_retention_is_not_to_be_worse_by_more_than_the_margin():
    forgets = evidence(answers(10), answers(30), champion={"target": answers(10), "old": answers(30)},
                       candidate={"target": answers(30), "old": answers(22)})
    assert failed(forgets, retention={"old": 0.1}) == ["retention/old", "pass_at/old@2"]
    assert failed(forgets, retention={"old": 0.4}, pass_at_margin=0.4) == []
    # one of 40 prompts lost: 2.5 points, but the interval's lower end is 7.5: what was not shown is not retained
    forgets = replace(forgets, candidate={"target": answers(30), "old": answers(29)})
    assert failed(forgets, retention={"old": 0.05}, pass_at_margin=0.4) == ["retention/old"]


def test_a_benchmark_that_was_not_asked_of_both_shows_nothing():
    found = judged(evidence(answers(10), answers(30)), retention={"production": 0.1})
    assert not found["retention/production"].passed and found["retention/production"].value == "not asked"


def test_answers_that_run_into_the_limit_stop_it_and_longer_ones_are_shown():
    found = evidence(answers(10), answers(30, truncated=0.05, length=16.0))
    assert failed(found) == ["truncation/target", "length/target"]
    severities = {name: check.severity for name, check in judged(found).items()}
    assert severities["truncation/target"] == "error" and severities["length/target"] == "warning"
    longer = checks_of(evidence(answers(10), answers(30, length=16.0)), Gate(target="target"))
    assert passed(longer) and not passed(checks_of(evidence(answers(10), answers(30, length=16.0)), Gate(
        target="target", severity={"length": "error"})))


def test_further_from_the_teacher_is_a_warning_where_it_was_measured():
    found = evidence(answers(10, reverse_kl_mean_nats=0.5), answers(30, reverse_kl_mean_nats=0.6))
    assert failed(found) == ["divergence/target"] and judged(found)["divergence/target"].severity == "warning"
    assert judged(found)["divergence/target"].value == "0.500 -> 0.600 nats"
    assert "divergence/target" not in judged(evidence(answers(10), answers(30)))


@pytest.mark.parametrize("changes, check", [
    ({"candidate_tokenizer": {"tokenizer.json": "a", "chat_template.jinja": "other"}}, "tokenizer"),
    ({"candidate_tokenizer": {"tokenizer.json": "a"}}, "tokenizer"),
    ({"candidate_tokenizer": {}, "champion_tokenizer": {}}, "tokenizer"),
    ({"contaminated": {"row": "How many figs?"}}, "contamination"),
    ({"checkpoint_digest": "e"}, "digest"),
    ({"differing": ["model.safetensors"]}, "digest"),
    ({"candidate": {"target": replace(answers(30), asked={"prompts": "these", "seed": 1})}}, "same_questions"),
])
def test_another_tokenizer_a_leak_other_weights_and_other_questions_stop_it(changes, check):
    found = checks_of(evidence(answers(10), answers(30), **changes), Gate(target="target"))
    assert not passed(found) and failures(found).startswith(check) and ";" not in failures(found)


def test_a_table_without_checks_does_not_pass_and_every_check_has_a_name_of_the_schema():
    assert not passed([])
    found = checks_of(evidence(answers(10, reverse_kl_mean_nats=1), answers(30, reverse_kl_mean_nats=1)),
                  Gate(target="target", retention={"target": 0.1}))
    assert {check.name.partition("/")[0] for check in found} == set(CHECKS)


def test_the_table_is_read_by_people_and_read_back():
    checks = checks_of(evidence(answers(10), answers(11)), Gate(target="target"))
    assert from_json(to_json(checks)) == checks
    assert "| target/target | error |" in to_markdown(checks) and "somewhere" in to_markdown(checks)
    assert "target/target" in to_text(checks) and "NO" in to_text(checks).splitlines()[2]


def test_evidence_is_shown_from_the_home_on(opd_home):
    assert place_shown(str(opd_home / "artifacts" / "report" / ("0123abcd" * 4))) == "artifacts/report/0123abcd"
    assert place_shown(str(opd_home / "refreshes" / "nightly" / "0001")) == "refreshes/nightly/0001"
    assert place_shown("/elsewhere/report") == "/elsewhere/report"


def test_a_template_is_the_same_in_whichever_file_it_stands(tmp_path):
    for name, files in {"own": {"chat_template.jinja": "{{ x }}", "tokenizer_config.json": "{}"},
                        "inside": {"tokenizer_config.json": '{"chat_template": "{{ x }}"}'}}.items():
        (tmp_path / name).mkdir()
        for file, text in {"tokenizer.json": "{}", **files}.items():
            (tmp_path / name / file).write_text(text)
    assert tokenizer_of(tmp_path / "own") == tokenizer_of(tmp_path / "inside") != tokenizer_of(tmp_path)
