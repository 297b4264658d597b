"""What a suite's page shows while the suite runs, when cells fail, and when it has ended."""
import json

import pytest

from tasks.opd.core.costs import TRAINED
from tasks.opd.core.errors import DataError
from tasks.opd.evaluation.cell_costs import Costs
from tasks.opd.evaluation.comparison import compare
from tasks.opd.evaluation.report import suites
from tasks.opd.evaluation.report.page import LIMIT, render
from tests.evaluation.report.made_runs import run

START = {"p:0": 1.0, "p:1": 0.0, "p:2": 0.0, "p:3": 0.0}
COSTS = Costs(tokens={TRAINED: 200.0}, evaluation_tokens={}, seconds={"checkpoint": 2.0}, size={})


def state(afters: dict[tuple[str, int], list[float]], failed: dict | None = None, left: int = 0,
          **options) -> suites.State:
    """A suite whose cells answered so; those that failed are cells too."""
    failed = failed or {}
    stems = [(*key, run(*key, suite="s", after=after, **options)) for key, after in afters.items()]
    stems += [(*key, run(*key, suite="s", error=ValueError(text))) for key, text in failed.items()]
    cells = {("start", 0): START, **{key: dict(zip(START, after)) for key, after in afters.items()}, **failed}
    table = compare(cells, "start", spent=dict.fromkeys(afters, COSTS)) if afters else None
    return suites.state_of("s", "tiny", "start", {"device": "cpu"}, stems, failed, left, table)


def page(given: suites.State):
    return suites.page_of(given, suites.runs_of(given))


def test_a_suite_that_ended_shows_every_variant_in_every_section():
    found = page(state({("gkd", 0): [1, 1, 1, 1], ("gkd", 1): [1, 1, 1, 0], ("tip", 0): [0, 0, 0, 0]},
                       values={"position/reverse_kl/0": 1.0}))
    assert [one["variant"] for one in found.forest] == ["gkd", "tip"] and found.forest[0]["difference"] == 0.625
    assert [(line.variant, line.seed) for line in found.lines] == [("gkd", 0), ("gkd", 1), ("tip", 0)]
    assert found.lines[0].curves["reward"][-1].value == 1.0
    assert found.pareto[0] == {"variant": "gkd", "mean": 0.875, "costs": {"trained": 200.0, "seconds": 2.0}}
    assert [(one.variant, one.gained, one.lost) for one in found.flips] == [("gkd", 3, 0), ("tip", 0, 1)]
    assert [answer.by for answer in found.questions[0].answers] == ["start", "gkd", "tip"]
    assert [*found.maps] == ["gkd", "tip"] and found.checklist_of == "gkd-seed0"
    assert "terms.0.divergence" in found.differences.settings
    assert (found.failures, found.retention, found.pass_at) == ([], None, [])
    assert [table.rows[0][0] for table in found.tables] == ["variant"]
    assert [table.rows[0][0] for table in found.costs] == ["1,000 tokens", "seconds"]
    assert "Costs are" in found.cost_notes[0] and "Costs are" not in " ".join(found.notes)


def test_a_suite_at_work_shows_what_is_there_and_says_what_is_not():
    found = page(state({("gkd", 0): [1, 1, 1, 1]}, left=3))
    assert found.verdict.endswith("3 cells have not been run.") and found.differences is None
    assert "3 cells have not been run" in render(found)


def test_a_cell_that_failed_stands_with_its_reason_beside_the_others():
    found = page(state({("gkd", 0): [1, 1, 1, 1]}, {("tip", 0): "ValueError: <loss> is NaN"}))
    assert found.failures == ["tip, seed 0: ValueError: <loss> is NaN"] and "Failed: tip." in found.verdict
    assert "&lt;loss&gt; is NaN" in render(found) and [line.variant for line in found.lines] == ["gkd", "tip"]


def test_a_suite_of_which_every_cell_failed_has_a_page():
    found = page(state({}, {("gkd", 0): "ValueError: no", ("tip", 0): "ValueError: no"}))
    assert (found.tables, found.forest, len(found.failures)) == ([], [], 2)
    assert "No variant has been compared with start yet." in render(found)


def test_a_state_is_read_as_it_was_written_and_gives_the_same_page(opd_home):
    given = state({("gkd", 0): [1, 1, 1, 1]}, {("tip", 0): "ValueError: no"})
    suites.write_state(given)
    assert suites.html_of(suites.read_state("s")) == suites.html_of(given)
    assert suites.read_state("another") is None
    file = opd_home / "suites" / "s" / "state.json"
    file.write_text(json.dumps({"suite": "s"}))
    with pytest.raises(DataError, match="another version"):
        suites.read_state("s")


@pytest.mark.parametrize("left", [b'{"suite": "s", "cel', b"\xff"], ids=["half", "bytes"])
def test_a_state_that_cannot_be_read_is_refused_with_the_way_out(opd_home, left):
    suites.write_state(state({("gkd", 0): [1, 1, 1, 1]}))
    (opd_home / "suites" / "s" / "state.json").write_bytes(left)
    with pytest.raises(DataError, match="state.json cannot be read: .*; opd compare s writes it anew"):
        suites.read_state("s")


def test_a_state_takes_the_place_of_the_one_before_in_one_step(opd_home):
    suites.write_state(state({("gkd", 0): [1, 1, 1, 1]}))
    file = opd_home / "suites" / "s" / "state.json"
    with open(file, "rb") as opened:                         # as a reader has it that began before
        before = file.read_bytes()
        suites.write_state(state({("gkd", 0): [1, 1, 1, 1]}, left=3))
        assert opened.read() == before != file.read_bytes()


def test_several_ks_become_a_curve_and_what_is_not_compared_a_table_of_forgetting():
    found = page(state({("gkd", 0): [1, 1, 1, 1]}, passes={"pass@4": 0.75, "pass@1": 0.5}, other=True))
    assert found.pass_at == [{"variant": "gkd", "points": [(1, 0.5), (4, 0.75)]}]
    assert found.retention.rows[1:] == [["gkd", "0", "other", "100.0", "25.0", "-75.0"]]
    assert "Forgetting" in render(found) and "pass@k" in render(found)


def test_a_suite_of_61_variants_and_two_seeds_stays_below_what_mlflow_shows():
    given = state({("gkd", 0): [1, 1, 1, 0]}, texts=["\u6570\u5b66 " * 2000] * 4, rounds=4,
                  values={f"position/quantity_{q}/{bucket}": 0.123456 * bucket for q in range(8)
                          for bucket in (0, 8, 16, 32, 64, 128, 256, 512)})
    [(_, _, stem)] = given.cells
    names = [f"variant_with_a_long_name_{i}" for i in range(61)]
    rewards = {(name, seed): dict.fromkeys(START, i % 7 / 7) for i, name in enumerate(names) for seed in (0, 1)}
    table = compare({("start", 0): START, **rewards}, "start", spent=dict.fromkeys(rewards, COSTS))
    cells = [(name, seed, stem) for name, seed in rewards]
    html = suites.html_of(suites.state_of("s", "tiny", "start", {}, cells, {}, 0, table))
    assert len(html.encode()) <= LIMIT and names[60] in html
    assert 'id="questions"' in html and 'id="maps"' in html
