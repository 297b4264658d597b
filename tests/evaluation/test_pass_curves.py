"""pass@k over k: values by hand, the table, and the line on who is right more often on fewer questions."""
from dataclasses import replace

import pytest

from flows.tables import table_of
from tasks.opd.core.records import Sample, write_rows
from tasks.opd.evaluation.comparison import compare
from tasks.opd.evaluation.comparison_tables import to_markdown, to_text
from tasks.opd.evaluation.pass_curves import curve_table, curves_of
from tasks.opd.store.artifacts import Artifact

# Forty prompts, two answers each: 28 of them half right and then right, 4 half right and then wrong, 8 never right.
BEFORE = [(1, 0)] * 32 + [(0, 0)] * 8
AFTER = [(1, 1)] * 28 + [(0, 0)] * 12


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Makes a report of answers [prompts][samples]."""
    monkeypatch.setenv("OPD_HOME", str(tmp_path))

    def made(name: str, answers: list[tuple[float, ...]], ks: tuple[int, ...] = (1, 2)) -> Artifact:
        found = Artifact(kind="report", fingerprint=name, digest="", counts={f"pass@{k}": 0 for k in ks})
        found.path.mkdir(parents=True)
        samples = [Sample(benchmark="b", prompt_id=f"p{i}", sample_index=j, token_ids=[1], text="", reward=reward,
                          feedback=None, finish_reason="stop")
                   for i, rewards in enumerate(answers) for j, reward in enumerate(rewards)]
        write_rows(found.path / "samples.parquet", samples, Sample)
        means = ", ".join(f'"p{i}": {sum(rewards) / len(rewards)}' for i, rewards in enumerate(answers))
        (found.path / "report.json").write_text(f'{{"mean_reward": {{{means}}}}}')
        return found
    return made


def test_every_k_is_compared_by_hand(report):
    found = curves_of({("start", 0): report("a", BEFORE), ("gkd", 0): report("b", AFTER)}, "start", {})
    one, two = found["gkd"]
    # pass@1: 16/40 before, 28/40 after; pass@2: 32/40 before, 28/40 after
    assert (one.k, one.mean, one.difference) == (1, pytest.approx(0.7), pytest.approx(0.3))
    assert (two.k, two.mean, two.difference) == (2, pytest.approx(0.7), pytest.approx(-0.1))
    # -1 on 4 of 40: standard deviation 0.30382, t(39) = 2.0227: 0.1 +- 0.0972; at k = 1 0.33589: 0.3 +- 0.1074
    assert two.interval == pytest.approx((-0.1972, -0.0028), abs=1e-4)
    assert [point.mean for point in found["start"]] == pytest.approx([0.4, 0.8]) and found["start"][0].interval is None


def test_pass_at_1_up_and_pass_at_k_down_is_named_in_every_output(report):
    start, end = report("a", BEFORE), report("b", AFTER)
    done = {("gkd", 0): {"start": {"b": start}, "end": {"b": end}, "evaluation": [],
                         "checkpoint": Artifact(kind="checkpoint", fingerprint="c", digest="", counts={})}}
    found = table_of(done, {}, "b", "start")
    assert curve_table(found)[0] == ["pass@k", "pass@1", "@1 vs start", "pass@2", "@2 vs start"]
    assert curve_table(found)[1] == ["start", "40.0", "", "80.0", ""]
    for text in (to_text(found), to_markdown(found)):
        assert "gkd: pass@1 rose, +30.0 [+19.3 +40.7], while pass@2 fell, -10.0 [-19.7 -0.3]" in " ".join(text.split())
        assert "pass@k: share of questions that k answers" in " ".join(text.split())


def test_a_variant_that_is_better_at_every_k_or_at_none_is_not_named(report):
    start = report("a", BEFORE)
    better, same = report("b", [(1, 1)] * 36 + [(0, 0)] * 4), report("c", BEFORE)
    rewards = {"x": 0.0, "y": 1.0}
    plain = compare({("start", 0): rewards, ("gkd", 0): rewards, ("sft", 0): rewards}, "start")
    found = replace(plain, pass_at=curves_of({("start", 0): start, ("gkd", 0): better, ("sft", 0): same}, "start", {}))
    assert "rose" not in to_text(found) and len(curve_table(found)) == 4


def test_a_fall_whose_interval_holds_0_is_not_named(report):
    rise = [(1, 1)] * 30 + [(0, 0)] * 10                     # pass@2 from 32/40 to 30/40: 2 of 40, 0.05 +- 0.0706
    plain = compare({("start", 0): {"x": 0.0}, ("gkd", 0): {"x": 0.0}}, "start")
    found = replace(plain, pass_at=curves_of({("start", 0): report("a", BEFORE), ("gkd", 0): report("b", rise)},
                                             "start", {}))
    one, two = found.pass_at["gkd"]
    assert one.interval[0] > 0 > two.difference and two.interval == pytest.approx((-0.1206, 0.0206), abs=1e-4)
    assert "rose" not in to_text(found)


def test_without_a_k_above_1_or_without_the_baseline_there_is_no_curve(report):
    one = {("start", 0): report("a", BEFORE, (1,)), ("gkd", 0): report("b", AFTER, (1,))}
    assert curves_of(one, "start", {}) == {} and curves_of({("gkd", 0): report("c", AFTER)}, "sft", {}) == {}
    assert "pass@" not in to_text(compare({("sft", 0): {"a": 0.0}}, "sft"))
