"""Each rule fires on its numbers, and not just below them; each is found once."""
import pytest

from tasks.opd.evaluation.findings import RULES, Finding, leaks, new_findings, to_markdown
from tasks.opd.recipe import loading
from tasks.opd.store.artifacts import Artifact


def record(index: int = 0, step: int | None = None, **metrics) -> dict:
    """A finished round; `a__b` is the metric a/b."""
    return {"round": index, "set": {}, "counts": {"step": index + 1 if step is None else step},
            "metrics": {name.replace("__", "/"): value for name, value in metrics.items()}}


@pytest.fixture(scope="module")
def plain():
    return loading.load("opd_reverse_kl")


@pytest.fixture(scope="module")
def averaged():
    return loading.load("sdft")


def test_loops_are_truncation_and_repetition_that_rise_together(plain):
    def found(cut, zlib, trigram=0.1):
        before = [record(i, rollout__truncated_share=0.2, trust__zlib_share=0.0, trust__trigram_repetition=0.1)
                  for i in range(3)]
        return RULES["loops"](plain, [*before, record(3, rollout__truncated_share=cut, trust__zlib_share=zlib,
                                                      trust__trigram_repetition=trigram)])
    assert found(0.5, 0.25) and "50%" in found(0.5, 0.25) and "25%" in found(0.5, 0.25) and "20%" in found(0.5, 0.25)
    assert "40% of their 3-grams" in found(0.5, 0.0, 0.4)
    assert found(0.5, 0.05) is None and found(0.25, 0.25) is None
    assert RULES["loops"](plain, [record(rollout__truncated_share=1.0, trust__zlib_share=1.0)]) is None  # no before


def test_strangers_are_told_by_the_first_round_alone(plain):
    def found(*overlaps):
        return RULES["strangers"](plain, [record(i, trust__overlap_at_16=x) for i, x in enumerate(overlaps)])
    assert "49%" in found(0.49) and found(0.49, 0.9)
    assert found(0.5) is None and found(0.9, 0.1) is None


def test_only_a_self_teacher_that_is_an_average_drifts(plain, averaged):
    far, near = [record(trust__reverse_kl_nats=0.71)], [record(trust__reverse_kl_nats=0.70)]
    assert "0.71" in RULES["drifting_average"](averaged, far)
    assert RULES["drifting_average"](averaged, near) is None and RULES["drifting_average"](plain, far) is None
    assert "0.80" in RULES["drifting_average"](averaged, [record(trust__teacher_gap_mean_nats=-0.8)])
    frozen = averaged.model_copy(update={"teacher": averaged.teacher.model_copy(
        update={"refresh": averaged.teacher.refresh.model_copy(update={"name": "frozen", "params": {}})})})
    assert RULES["drifting_average"](frozen, far) is None


def test_entropy_that_halves_within_20_steps_collapses(plain):
    def found(*points):
        return RULES["collapsing"](plain, [record(i, step, trust__student_entropy_nats=value)
                                           for i, (step, value) in enumerate(points)])
    assert "from 2.00 to 1.00 nats within 19 steps" in found((1, 2.0), (20, 1.0)).replace("optimizer ", "")
    assert found((1, 2.0), (21, 1.0)) is None and found((1, 2.0), (20, 1.01)) is None
    assert found((1, 2.0), (15, 1.5), (30, 0.76)) is None and found((1, 2.0), (15, 1.5), (30, 0.75))
    assert found((1, 0.5)) is None


def test_a_hundredth_of_the_tokens_may_hold_half_of_the_gaps(plain):
    assert "51%" in RULES["concentrated"](plain, [record(trust__teacher_gap_top1_share=0.51)])
    assert RULES["concentrated"](plain, [record(trust__teacher_gap_top1_share=0.5)]) is None


def test_a_mismatch_is_none_where_another_distribution_was_sampled(plain):
    apart = [record(trust__sampler_kl_nats=0.011)]
    assert "0.011" in RULES["mismatch"](plain, apart)
    assert RULES["mismatch"](plain, [record(trust__sampler_kl_nats=0.01)]) is None
    for changed in ("rollout.sampling.temperature=0.7", "rollout.sampling.top_p=0.9", "rollout.sampling.top_k=20",
                    "rollout.writers.0.name=mixture"):
        recipe = loading.load("opd_reverse_kl", [changed, "accepts={truncated_sampling: a test}"])
        assert RULES["mismatch"](recipe, apart) is None


def test_what_was_not_measured_is_not_found(plain, averaged):
    assert all(rule(recipe, [record(0), record(1)]) is None for rule in RULES.values() for recipe in (plain, averaged))


def test_a_rule_is_found_once_with_the_round_that_broke_it(plain):
    history = [record(0, trust__overlap_at_16=0.9), record(1, trust__teacher_gap_top1_share=0.7)]
    assert new_findings(plain, history[:1], []) == []
    first = new_findings(plain, history, [])
    assert [(finding.rule, finding.rounds) for finding in first] == [("concentrated", 2)]
    assert new_findings(plain, [*history, record(2, trust__teacher_gap_top1_share=0.8)], first) == []
    assert to_markdown(first).splitlines()[2].startswith("- round 2, `concentrated`: 1 % of the tokens hold 70%")
    assert to_markdown([]) == "" and isinstance(first[0], Finding)


def reports(share: float) -> dict[str, Artifact]:
    return {"tiny": Artifact(kind="report", fingerprint="f", digest="", counts={"leakage_share": share})}


def test_leaks_are_found_where_a_teacher_saw_more_and_they_rose(plain, averaged):
    [found] = leaks(averaged, 4, reports(0.02), reports(0.05))
    assert found.rule == "leakage" and found.rounds == 4 and "5.0% of the answers to tiny" in found.text
    assert "2.0% at the start" in found.text
    assert leaks(averaged, 4, reports(0.05), reports(0.06)) == [] == leaks(plain, 4, reports(0.0), reports(0.5))
    assert leaks(loading.load("trd_solution"), 4, reports(0.0), reports(0.5))
