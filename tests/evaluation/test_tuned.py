"""What tuning chose and what it cost, worked by hand, and as a table."""
from dataclasses import replace

from tasks.opd.evaluation.cell_costs import Costs
from tasks.opd.evaluation.comparison import compare
from tasks.opd.evaluation.comparison_tables import to_markdown, to_text
from tasks.opd.evaluation.tuned import Tried, tuned_by, tuning_table


def tried(rate: float, mean: float | None, trained: int = 1000) -> Tried:
    costs = Costs(tokens={"trained_tokens": trained}, evaluation_tokens={}, seconds={"checkpoint": 2.0, "report": 0.5},
                  size={"bytes": 10})
    return Tried(settings={"train.learning_rate": rate}, mean=mean, costs=None if mean is None else costs,
                 error="" if mean is not None else "NonFinite: the loss is nan")


def test_the_best_mean_is_chosen_the_first_of_equals_and_costs_are_summed():
    found = tuned_by([tried(1e-4, 0.25), tried(5e-4, 0.5, 3000), tried(1e-3, 0.5), tried(2e-3, None)])
    assert found.chosen == {"train.learning_rate": 5e-4} and found.mean == 0.5 and len(found.trials) == 4
    assert found.costs == Costs(tokens={"trained_tokens": 5000}, evaluation_tokens={}, size={"bytes": 30},
                                seconds={"checkpoint": 6.0, "report": 1.5})


def test_the_table_has_the_choice_its_cost_and_a_mark_at_an_end_of_the_values_tried():
    tuning = {"gkd": tuned_by([tried(1e-4, 0.25), tried(5e-4, 0.5), tried(2e-3, 0.125)]),
              "sft": tuned_by([tried(1e-4, 0.25), tried(5e-4, 0.0), tried(2e-3, None)]),
              "tip": tuned_by([tried(1e-4, None)])}
    assert tuning_table(tuning) == [
        ["tuned", "train.learning_rate", "validation", "trials", "1,000 trained", "seconds"],
        ["gkd", "0.0005", "50.0", "3 of 3", "3.0", "7.5"],
        ["sft", "0.0001*", "25.0", "2 of 3", "2.0", "5.0"],
        ["tip", "-", "failed", "0 of 1", "-", "0.0"]]
    assert tuning_table({}) == []


def test_a_comparison_shows_its_tuning_in_every_output():
    plain = compare({("sft", 0): {"a": 0.0, "b": 0.0}, ("gkd", 0): {"a": 1.0, "b": 1.0}}, "sft")
    found = replace(plain, tuning={"gkd": tuned_by([tried(1e-4, 0.25), tried(5e-4, None)])})
    for text in (to_text(found), to_markdown(found)):
        assert "train.learning_rate" in text and "1 of 2" in text
        assert "gkd, trial {'train.learning_rate': 0.0005}: failed: NonFinite: the loss is nan" in text
        assert "Tuned: every variant by as many trials" in " ".join(text.split())
    assert "uned" not in to_text(plain) and "Costs are means" not in to_text(found)
    assert '"mean": 0.25' in found.to_json()
