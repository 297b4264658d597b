"""The comparison: pairing, intervals, verdicts, seeds, failures, costs and placebos, on numbers worked by hand."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from flows.tables import markdown_of_run, table_of
from tasks.opd.core.costs import NAMES, counted
from tasks.opd.evaluation.cell_costs import Costs
from tasks.opd.evaluation.comparison import compare
from tasks.opd.evaluation.comparison_tables import note, provenance, to_markdown, to_text
from tasks.opd.evaluation.reports import divergence_line
from tasks.opd.recipe.schema import Budget
from tasks.opd.store import artifacts
from tasks.opd.store.artifacts import Artifact

ASKED = ("a", "b", "c", "d")
WIDTH = 160                      # columns of a terminal that the tables of a large suite fit into


def cell(*rewards: float) -> dict[str, float]:
    """Rewards of prompts a, b, c, d."""
    return dict(zip(ASKED, rewards))


def row(comparison, variant):
    return next(r for r in comparison.rows if r.variant == variant)


def test_difference_is_the_mean_over_prompts_and_seeds_of_paired_differences():
    cells = {("sft", 0): cell(0, 0, 1, 1), ("sft", 1): cell(0, 0, 0, 1),
             ("gkd", 0): cell(1, 0, 1, 1), ("gkd", 1): cell(1, 1, 0, 1)}
    gkd = row(compare(cells, "sft"), "gkd")
    # seed 0: (1 0 0 0) -> 0.25; seed 1: (1 1 0 0) -> 0.5; together 0.375; means 0.75 and 0.75
    assert gkd.difference_by_seed == {0: 0.25, 1: 0.5}
    assert gkd.difference == 0.375 and gkd.mean == 0.75 and gkd.by_seed == {0: 0.75, 1: 0.75}


def test_prompts_are_paired_by_name_not_by_place():
    shuffled = {"d": 1.0, "c": 0.0, "b": 1.0, "a": 0.0}
    same = row(compare({("sft", 0): cell(0, 1, 0, 1), ("gkd", 0): shuffled}, "sft"), "gkd")
    assert same.difference == 0 and same.interval == (0, 0) and same.verdict == "not distinguishable"


def test_interval_is_a_point_where_every_prompt_differs_alike():
    cells = {("sft", 0): cell(0, 0.25, 0.5, 0), ("gkd", 0): cell(0.5, 0.75, 1, 0.5),
             ("sad", 0): cell(-0.5, -0.25, 0, -0.5)}
    found = compare(cells, "sft")
    assert row(found, "gkd").interval == (0.5, 0.5) and row(found, "gkd").verdict == "better"
    assert row(found, "sad").interval == (-0.5, -0.5) and row(found, "sad").verdict == "worse"
    assert row(found, "sft").verdict == "baseline"


def test_one_prompt_in_four_is_not_distinguishable():
    # mean 0.25, standard error 0.5 / 2, and Student's t with 3 degrees of freedom reaches 3.1824
    found = row(compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 0, 0, 0)}, "sft"), "gkd")
    assert found.interval == pytest.approx((0.25 - 0.79561, 0.25 + 0.79561), abs=1e-5)
    assert found.verdict == "not distinguishable" and not found.seeds_covered


def test_from_three_seeds_on_the_interval_covers_seeds_and_the_table_has_their_deviation():
    cells = {("start", 0): cell(0, 0, 0, 0)}
    cells |= {("gkd", s): cell(*(np.array([0.2, 0.3, 0.5, 0.6]) + 0.1 * s)) for s in range(3)}
    found = compare(cells | {("sft", s): cell(0, 0, 0, 1) for s in (0, 1)}, "start")
    gkd, sft = row(found, "gkd"), row(found, "sft")
    # seeds' means 0.4 0.5 0.6: A = 0.01 / 3; prompts' means 0.3 0.4 0.6 0.7: C = 0.1 / 3 / 4; nothing besides: E = 0
    # df = (1/300 + 1/120)^2 / (1/300^2 / 2 + 1/120^2 / 3) = 4.742
    assert gkd.seed_sd == pytest.approx(0.1) and gkd.difference_seed_sd == pytest.approx(0.1) and gkd.seeds_covered
    reach = 2.61358 * (1 / 300 + 1 / 120) ** 0.5
    assert gkd.interval == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-3)
    assert sft.seed_sd == 0 and sft.difference_seed_sd is None and not sft.seeds_covered
    for text in (to_text(found), to_markdown(found)):
        said = " ".join(text.split())
        assert "An interval of 3 seeds or more covers the choice of seeds and that of prompts" in said
        assert "With fewer than 3 seeds: seed variance not estimable of sft; the interval covers" in said
    header, _, start, first, second = (re.split(r"  +", line) for line in to_text(found).splitlines()[:5])
    assert header[5] == "seed SD" and first[5] == "10.0" and "-" in second and "10.0" not in start


def test_verdicts_are_adjusted_for_the_number_of_comparisons():
    # 4 of 60 prompts: t = 0.0667 / 0.0325 = 2.054, p = 0.0445; three of its kind: 0.1334
    def right(*at: int) -> dict[str, float]:
        return {str(i): float(i in at) for i in range(60)}
    cells = {("sft", 0): right(), ("gkd", 0): right(1, 2, 3, 4), ("tip", 0): right(4, 5, 6, 7)}
    alone = row(compare({key: cell for key, cell in cells.items() if key[0] != "tip"}, "sft"), "gkd")
    assert alone.verdict == "better" and alone.p_adjusted == alone.p == pytest.approx(0.0445, abs=1e-4)
    found = compare(cells, "sft", placebos={"gkd": "sft"})
    gkd = row(found, "gkd")
    assert gkd.p == alone.p and gkd.p_adjusted == 2 * alone.p and gkd.interval == alone.interval
    assert gkd.verdict == "not distinguishable" and gkd.placebo_p_adjusted == alone.p    # of placebos there is one
    assert gkd.placebo_verdict == "above its placebo"
    assert "A verdict is adjusted for all 2 comparisons with sft (Holm, 5%)" in to_markdown(found)


@pytest.mark.parametrize("variants", [10, 86])
def test_seeds_far_apart_are_not_taken_for_differences_of_any_of_many_variants(variants):
    rng, prompts, wrong, suites = np.random.default_rng(variants), 60, 0, 2000 // variants
    start = {("start", 0): {str(p): 0.0 for p in range(prompts)}}
    for _ in range(suites):                              # no variant differs but by the luck of its three seeds
        drawn = rng.normal(0, 0.2, (variants, 3, 1)) + rng.normal(0, 0.35, (variants, 3, prompts))
        cells = {(f"v{v}", s): dict(zip(start["start", 0], drawn[v, s])) for v in range(variants) for s in range(3)}
        wrong += any(row.verdict in ("better", "worse") for row in compare(start | cells, "start").rows)
    # by Satterthwaite's p one suite in five with 10 variants; 5% and two standard errors of so few suites
    assert wrong / suites <= 0.05 + 2 * (0.05 * 0.95 / suites) ** 0.5


def test_kin_prompts_count_as_one_cluster():
    cells = {("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 0, 0)}
    found = compare(cells, "sft", clusters={"a": "t", "b": "t", "c": "u", "d": "u"})
    # two clusters that differ altogether: mean 0.5, standard error 0.5, one degree of freedom
    assert row(found, "gkd").interval == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)
    assert found.num_clusters == 2 and "4 prompts (2 clusters of one template or source)" in to_markdown(found)
    assert compare(cells, "sft", clusters={"a": "t"}).num_clusters == 4


def test_same_cells_give_the_same_interval():
    cells = {("sft", 0): cell(0, 0, 1, 1), ("gkd", 0): cell(1, 0, 1, 0)}
    assert compare(cells, "sft") == compare(cells, "sft")


def test_start_has_one_cell_for_all_seeds():
    cells = {("start", 0): cell(0, 0, 0, 1), ("gkd", 3): cell(1, 1, 1, 1), ("gkd", 4): cell(1, 1, 0, 1)}
    found = compare(cells, "start")
    assert row(found, "gkd").difference_by_seed == {3: 0.75, 4: 0.5}
    assert found.seeds == [3, 4]
    assert row(compare(cells, "gkd"), "start").difference_by_seed == {3: -0.75, 4: -0.5}


def test_a_failed_cell_is_shown_and_the_other_seed_still_counts():
    cells = {("sft", 0): cell(0, 0, 0, 0), ("sft", 1): cell(0, 0, 0, 0),
             ("gkd", 0): cell(1, 1, 1, 1), ("gkd", 1): "Traceback ...\nNonFinite: the loss is nan"}
    found = compare(cells, "sft")
    assert row(found, "gkd").difference == 1 and row(found, "gkd").by_seed == {0: 1.0, 1: None}
    for text in (to_text(found), to_markdown(found)):
        assert "failed" in next(line for line in text.splitlines() if "gkd" in line)
        assert "gkd, seed 1: failed: NonFinite: the loss is nan" in text


def test_a_variant_or_baseline_that_failed_altogether_is_still_a_row():
    found = compare({("sft", 0): "died", ("gkd", 0): cell(1, 1, 1, 1)}, "sft")
    assert row(found, "sft").verdict == "failed" and row(found, "gkd").verdict == "no baseline"
    assert "100.0" in to_text(found)
    assert to_text(compare({("sft", 0): "died"}, "sft"))


def test_tables_say_how_many_seeds_and_what_the_interval_covers():
    found = compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 0, 1)}, "sft")
    for text in (to_text(found), to_markdown(found)):
        said = " ".join(text.split())
        assert "4 prompts and 1 seed." in said and "+75.0" in said
        assert "seed variance not estimable; the interval covers the choice of prompts, not of seeds" in said
    header, _, sft, gkd = to_text(found).splitlines()[:4]
    assert header.index("verdict") == sft.index("baseline") == gkd.index("not dist")  # columns are aligned
    assert json.loads(found.to_json())["rows"][1]["difference"] == 0.75


def test_other_prompts_or_an_unknown_baseline_are_refused():
    with pytest.raises(ValueError, match="asked other prompts"):
        compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): {"a": 1.0}}, "sft")
    with pytest.raises(ValueError, match="baseline is 'stf'"):
        compare({("sft", 0): cell(0, 0, 0, 0)}, "stf")


def costs(**tokens: int) -> Costs:
    """A cell's costs: `trained=2000` are so many trained tokens; two seconds of training, none of anything else."""
    return Costs(tokens={f"{name}_tokens": count for name, count in tokens.items()}, evaluation_tokens={},
                 seconds={"checkpoint": 2.0}, size={})


def table_line(text: str, variant: str, table: int = 0) -> list[str]:
    """A variant's cells in one of the tables: rewards, tokens, seconds."""
    lines = [line for line in text.split("\n\n")[table].splitlines() if line.startswith(f"{variant} ")]
    return re.split(r"  +", lines[0])


def test_tokens_are_means_over_the_seeds_that_finished_in_thousands():
    cells = {("start", 0): cell(0, 0, 0, 0), ("sft", 0): cell(0, 0, 0, 0), ("sft", 1): cell(0, 0, 0, 0),
             ("gkd", 0): cell(1, 1, 1, 1), ("gkd", 1): "died"}
    known = {("sft", seed): costs(teacher_written=written, trained=2000) for seed, written in ((0, 9000), (1, 12000))}
    known["gkd", 0] = costs(teacher_written=0, trained=2000)
    found = compare(cells, "start", spent=known)
    assert row(found, "sft").costs == costs(teacher_written=10500, trained=2000)
    assert row(found, "sft").spent_by_seed == {0: 2000, 1: 2000}
    text = to_text(found)
    assert table_line(text, "sft", 1) == ["sft", "0.0", "10.5", "2.0"]
    assert table_line(text, "gkd")[2:4] == ["100.0", "failed"] and table_line(text, "gkd", 1)[2:] == ["0.0", "2.0"]
    assert "start " not in "".join(text.split("\n\n")[1:3]) and table_line(text, "sft", 2)[1:3] == ["2.0", "2.0"]
    assert "| sft | 0.0 | 10.5 | 2.0 |" in to_markdown(found)
    assert json.loads(found.to_json())["rows"][1]["costs"]["tokens"]["teacher_written_tokens"] == 10500


def test_tokens_that_were_not_counted_are_a_dash_and_a_column_that_nobody_fills_is_left_out():
    cells = {("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 1, 1)}
    some = compare(cells, "sft", spent={("gkd", 0): costs(trained=1234567), ("sft", 0): costs(teacher_read=500)})
    assert table_line(to_text(some), "gkd", 1)[2:] == ["-", "1,234.6"]
    assert table_line(to_text(some), "sft", 1)[2:] == ["0.5", "-"] and "wrote" not in to_text(some)
    assert some.spent_equal is None and "Trained tokens are" not in to_text(some)  # of one cell there is no saying
    nothing = Costs(tokens={}, evaluation_tokens={}, seconds={}, size={})
    none = to_text(compare(cells, "sft", spent={("gkd", 0): nothing}))
    assert "trained" not in none and "placebo" not in none


@pytest.mark.parametrize("trained, difference, equal, said", [
    ((2000, 2000), 0, True, "are equal in 2 cells (largest relative difference 0.0%)"),
    ((2000, 1990), 0.005, True, "are equal within 1% in 2 cells (largest relative difference 0.5%)"),
    ((2000, 1500), 0.25, False,
     "are NOT equal (largest relative difference 25.0%): from 1,500 (gkd, seed 0) to 2,000 (sft, seed 0)"),
    ((0, 0), 0, True, "are equal in 2 cells")])
def test_the_table_says_whether_trained_tokens_are_equal(trained, difference, equal, said):
    cells = {("start", 0): cell(0, 0, 0, 0), ("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 1, 1)}
    known = {("sft", 0): costs(trained=trained[0]), ("gkd", 0): costs(trained=trained[1])}
    found = compare(cells, "start", spent=known)
    assert (found.spent_difference, found.spent_equal) == (difference, equal)
    assert all(f"Trained tokens {said}" in " ".join(text.split()) for text in (to_text(found), to_markdown(found)))
    more = compare({**cells, ("tip", 0): cell(0, 0, 0, 0), ("tip", 1): "died"}, "start", spent=known)
    assert "Not known of 1 more." in " ".join(to_text(more).split())


def test_the_table_says_whether_what_the_budget_is_in_was_spent_alike():
    cells = {("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 1, 1)}
    known = {("sft", 0): costs(trained=5, teacher_read=100), ("gkd", 0): costs(trained=9, teacher_read=100)}
    said = " ".join(to_text(compare(cells, "sft", spent=known, currency="teacher_read_tokens")).split())
    assert "Teacher read tokens are equal in 2 cells" in said and "Trained tokens are" not in said


PLACEBO = {("sft", 0): cell(0, 0, 0, 0), ("sft", 1): cell(0, 0, 0, 0),
           ("shuffled", 0): cell(0, 0.5, 0, 0.5), ("shuffled", 1): cell(0, 0, 0.5, 0.5),
           ("gkd", 0): cell(0.5, 1, 0.5, 1), ("gkd", 1): cell(0.5, 0.5, 1, 1),
           ("tip", 0): cell(1, 0.5, 0, 0.5), ("tip", 1): "died"}


def test_the_difference_to_a_placebo_is_paired_over_prompts_and_seeds():
    found = compare(PLACEBO, "sft", placebos={"gkd": "shuffled", "tip": "shuffled", "shuffled": ""})
    gkd, tip = row(found, "gkd"), row(found, "tip")
    # gkd is 0.5 above it on every prompt of either seed; tip is above it on one prompt in four, and of one seed
    assert gkd.placebo_difference == 0.5 and gkd.placebo_interval == (0.5, 0.5)
    assert gkd.placebo_difference_by_seed == {0: 0.5, 1: 0.5} and gkd.placebo_verdict == "above its placebo"
    assert tip.placebo_difference_by_seed == {0: 0.25} and tip.placebo_difference == 0.25
    assert tip.placebo_interval[0] < 0 and tip.placebo_verdict == "not above its placebo"
    assert row(found, "shuffled").placebo == "" and row(found, "shuffled").placebo_verdict == ""


def test_what_is_not_above_its_placebo_is_marked_in_every_output_and_the_note_says_what_that_means():
    found = compare(PLACEBO, "sft", placebos={"gkd": "shuffled", "tip": "shuffled"})
    for text in (to_text(found), to_markdown(found)):
        marked = [line for line in text.splitlines() if "not above its placebo" in line]
        assert len(marked) == 2 and "tip" in marked[0]
        assert "A variant marked" in marked[1] and "difference to its placebo is not above 0" in " ".join(text.split())
        assert "shuffled is the placebo of gkd, tip" in text and "+50.0 [+50.0 +50.0]" in text
    assert table_line(to_text(found), "tip")[-1] == "not distinguishable, not above its placebo"
    marks = {r["variant"]: r["placebo_verdict"] for r in json.loads(found.to_json())["rows"]}
    assert marks == {"sft": "", "shuffled": "", "gkd": "above its placebo", "tip": "not above its placebo"}


def test_a_placebo_that_is_the_baseline_has_the_baselines_interval():
    cells = {("sft", 0): cell(0, 0, 1, 1), ("gkd", 0): cell(1, 0.5, 1, 0)}
    gkd = row(compare(cells, "sft", placebos={"gkd": "sft"}), "gkd")
    assert gkd.placebo_interval == gkd.interval and gkd.placebo_difference == gkd.difference == 0.125


@pytest.mark.parametrize("placebos, cells, said", [
    ({"gkd": "shuffled", "sft": "fixed"}, {("fixed", 0): cell(0, 0, 0, 0)},
     "shuffled is the placebo of gkd, but is not compared here"),
    ({"gkd": "shuffled"}, {("shuffled", 0): "died"}, "shuffled is the placebo of gkd, but failed")])
def test_a_placebo_that_is_not_there_or_failed_is_a_dash(placebos, cells, said):
    cells = {("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 1, 1), **cells}
    found = compare(cells, "sft", placebos=placebos)
    assert row(found, "gkd").placebo_difference is None and row(found, "gkd").placebo_verdict == ""
    assert table_line(to_text(found), "gkd")[-2:] == ["-", "better"]
    assert all(said in text for text in (to_text(found), to_markdown(found)))


def test_a_suite_without_any_placebo_says_nothing_of_them():
    found = compare({("sft", 0): cell(0, 0, 0, 0), ("gkd", 0): cell(1, 1, 1, 1)}, "sft", placebos={"gkd": "shuffled"})
    assert all("placebo" not in text for text in (to_text(found), to_markdown(found)))
    assert row(found, "gkd").placebo == "shuffled"                        # JSON keeps it


def test_a_small_suites_text_fits_120_columns_note_and_costs_included():
    cells = {(variant, seed): cell(0, 1, 0, 1) for variant in ("start", "sft", "opd_reverse_kl") for seed in (0, 1)}
    spent = Costs(tokens=dict.fromkeys(NAMES, 256000), evaluation_tokens=dict.fromkeys(NAMES, 20000),
                  seconds=dict.fromkeys(("rollouts", "grades", "scores", "checkpoint", "report"), 20.0),
                  size={"bytes": 1e8})
    found = compare(cells, "start", spent={key: spent for key in cells if key[0] != "start"},
                    placebos={"opd_reverse_kl": "sft"})
    lines = to_text(found).splitlines()
    assert max(map(len, lines)) <= 120 and "MB (10^6 bytes)" in " ".join(lines)
    assert " ".join(note(found)) in " ".join(lines)                       # wrapped, and nothing lost


def test_the_divergence_to_the_teacher_stands_beside_the_reward_where_a_trained_student_has_one():
    cells = {("start", 0): cell(0, 0, 0, 1), ("gkd", 0): cell(0, 0, 0, 1), ("gkd", 1): cell(0, 0, 0, 1),
             ("sft", 0): cell(0, 0, 0, 1)}
    found = compare(cells, "start", divergences={("start", 0): 0.74, ("gkd", 0): 0.46, ("gkd", 1): 0.50})
    # gkd: (0.46 + 0.50) / 2 = 0.48
    assert [r.reverse_kl for r in found.rows] == [0.74, pytest.approx(0.48), None]
    assert [line.split()[:4] for line in to_text(found).splitlines()[:5] if "-" not in line[:5]] == [
        ["variant", "mean", "reverse", "KL"], ["start", "25.0", "0.740", "baseline"],
        ["gkd", "25.0", "0.480", "25.0"], ["sft", "25.0", "25.0", "+0.0"]]
    assert any(sentence.startswith("Reverse KL is that to the teacher") for sentence in note(found))
    assert "everse" not in to_text(compare(cells, "start", divergences={("start", 0): 0.74}))


def test_a_kept_table_opens_with_date_command_benchmark_versions_and_seeds():
    facts = provenance("zoo", ["benchmarks.0.sampling={top_p: 1}"], "tiny",
                    {"device": "cpu", "versions": {"torch": "2.13.0", "vllm": None, "numpy": "2.4.1"}})
    text = to_markdown(compare({("sft", 3): cell(0, 0, 0, 0), ("sft", 4): cell(0, 0, 0, 0)}, "sft"), facts)
    first, empty, header = text.splitlines()[:3]
    assert re.fullmatch(r"date: \d{4}-\d\d-\d\d \d\d:\d\d UTC; command: `opd compare zoo "
                        r"'benchmarks.0.sampling=\{top_p: 1\}'`; benchmark: tiny; device: cpu; "
                        r"versions: torch 2.13.0, numpy 2.4.1; seeds: 3, 4", first)
    assert empty == "" and header.startswith("| variant | mean |")


def zoo(seeds: int) -> tuple[list[str], str]:
    """Seventy variants with the longest names, every third of which failed, and their table as text."""
    variants = [f"fixed_negative_adv_no_{i:02d}" for i in reversed(range(70))]
    cells = {(v, s): "died" if i % 3 == 0 else cell(*np.random.default_rng([i, s]).random(4))
             for i, v in enumerate(variants) for s in range(seeds)}
    cells = {("opd_reverse_kl", s): cell(0.5, 0.5, 0.5, 0.5) for s in range(seeds)} | cells
    stages = ("rollouts", "grades", "refined", "scores", "checkpoint", "report")
    spent = Costs(tokens=dict.fromkeys(NAMES, 1234567), evaluation_tokens=dict.fromkeys(NAMES, 1234567),
                  seconds=dict.fromkeys(stages, 1234.5), size={"bytes": 1e9})
    known = {key: spent for key, value in cells.items() if value != "died"}
    found = compare(cells, "opd_reverse_kl", spent=known, placebos=dict.fromkeys(variants, variants[1]))
    return ["opd_reverse_kl", *variants], to_text(found)


@pytest.mark.parametrize("seeds", [2, 4])
def test_seventy_rows_stand_as_given_within_the_width_with_failed_cells_as_failed(seeds):
    variants, text = zoo(seeds)
    for table in (tables := [part.splitlines() for part in text.split("\n\n")[:3]]):
        assert [line.split()[0] for line in table[2:]] == variants
        assert all(len(line) <= WIDTH for line in table)
    assert table_line(text, variants[1])[1:1 + seeds] == ["failed"] * seeds
    assert [tables[1][0].count("wrote"), tables[2][0].split()[1:6]] == [
        4, ["rollouts", "grades", "refined", "scores", "checkpoint"]]
    assert table_line(text, variants[2], 1)[2:] == ["1,234.6"] * 7
    assert table_line(text, variants[2], 2)[6:] == ["6,172.5", "1,234.5", "1,000.0"]  # of five stages; apart; megabytes


def test_a_suites_rows_stand_in_its_order_with_what_each_cell_cost(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))

    def made(kind: str, name: str, counts: dict, **files: dict) -> Artifact:
        folder = artifacts.begin(kind, name)
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return artifacts.seal(folder, {"kind": kind, "fingerprint": name, "counts": counts, "inputs": {}, "seconds": 2})

    def report(name: str, *rewards: float) -> Artifact:
        wrote = counted("report", {"student_written_tokens": 4})
        return made("report", name, wrote, report={"mean_reward": cell(*rewards)})
    checkpoint, start = made("checkpoint", "c", {"trained_tokens": 20, "steps": 7}), report("start", 0, 0, 0, 0)
    ends = {"gkd": report("gkd", 1, 1, 1, 1), "sft": report("sft", 0.5, 0.5, 0.5, 0.5)}
    done = {(name, 0): {"checkpoint": checkpoint, "start": {"tiny": start}, "end": {"tiny": end},
                        "evaluation": [start, end]} for name, end in ends.items()}
    suite = [(name, 0, SimpleNamespace(about=SimpleNamespace(placebo=placebo), budget=Budget(seconds=9)))
             for name, placebo in (("gkd", "sft"), ("tip", "sft"), ("sft", ""))]
    found = table_of(done, {("tip", 0): ValueError("no")}, "tiny", "start", suite)
    assert [r.variant for r in found.rows] == ["start", "gkd", "tip", "sft"]
    assert row(found, "gkd").placebo_difference == 0.5 and row(found, "gkd").costs.tokens["trained_tokens"] == 20
    assert row(found, "gkd").costs.evaluation_tokens["student_written_tokens"] == 8     # before and after
    assert row(found, "gkd").costs.seconds == {"checkpoint": 2, "report": 4}
    assert row(found, "tip").verdict == "failed" and row(found, "tip").placebo == "sft" and found.spent_equal
    assert found.currency == "seconds" and row(found, "gkd").spent_by_seed == {0: 2}    # its rounds, not its reports
    assert table_of(done, {}, "tiny", "start").rows[1].placebo == ""


def test_a_runs_divergence_is_shown_with_the_tokens_it_was_computed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))

    def report(name: str, **counts) -> Artifact:
        made = Artifact(kind="report", fingerprint=name, digest="", counts=counts)
        made.path.mkdir(parents=True, exist_ok=True)
        (made.path / "report.json").write_text(json.dumps({"mean_reward": cell(0, 0, 0, 1)}))
        return made
    start = report("a", avg=0.25, reverse_kl_mean_nats=1.0954, divergence_tokens=4100)
    end = report("b", avg=0.25, reverse_kl_mean_nats=0.5, divergence_tokens=65536)
    told = "Mean reverse KL to the teacher in nats a token, on the student's answers: 0.500 over 65,536 tokens; " \
           "start 1.095 over 4,100 tokens."
    assert divergence_line(start, end) == told
    result = {"recipe": "gkd", "seed": 0, "start": {"tiny": start}, "end": {"tiny": end}, "evaluation": [],
              "checkpoint": Artifact(kind="checkpoint", fingerprint="c", digest="", counts={})}
    assert markdown_of_run(result).startswith("### tiny\n\n| variant | mean | reverse KL | seed 0 |")
    assert "| gkd | 25.0 | 0.500 | 25.0 |" in markdown_of_run(result) and markdown_of_run(result).endswith(told)
    without = result | {"end": {"tiny": report("c", avg=0.25)}}
    assert divergence_line(start, report("c", avg=0.25)) == "" and "KL" not in markdown_of_run(without)
    assert divergence_line(report("d", divergence_tokens=0), end) == ""  # of no token there is no mean
