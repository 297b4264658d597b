"""The view that links open: which runs, columns and charts."""
import base64
import json
import zlib

from tasks.opd.evaluation import final
from tasks.tracking import view


def test_a_suites_view_has_its_cells_and_scores_first_over_rounds_tokens_and_seconds():
    state = view.state_of(["tiny", "hard"], ["a1", "b2"])
    assert state["searchFilter"] == "attributes.run_id IN ('a1','b2')"
    assert state["orderByKey"] == "metrics.`eval/tiny/avg`" and state["orderByAsc"] is False
    assert {"metrics.`eval/tiny/avg`", "metrics.`eval/hard/avg`", "tags.`variant`", "tags.`seed`"} <= {
        *state["selectedColumns"]}
    assert state["selectedColumns"][:len(final.NAMES)] == [f"metrics.`{name}`" for name in final.NAMES]
    across = [card["xaxis"]["key"] for card in state["compareRunCharts"] if card["type"] == "SCATTER"]
    assert {"final/trained_tokens", "final/teacher_read_tokens", "final/seconds"} < {*across}
    first = state["compareRunCharts"][:4]
    assert [card["metricKey"] for card in first] == 4 * ["eval/tiny/avg"]
    assert [(card["type"], card.get("xAxisKey"), card.get("selectedXAxisMetricKey")) for card in first] == [
        ("LINE", "step", ""), ("LINE", "metric", "round/trained_tokens"), ("LINE", "metric", "round/seconds"),
        ("BAR", None, None)]


def test_every_card_stands_in_a_section_under_a_key_of_its_own():
    state = view.state_of(["tiny"], None)
    cards, sections = state["compareRunCharts"], {section["uuid"] for section in state["compareRunSections"]}
    assert len({card["uuid"] for card in cards}) == len(cards)
    assert {card["metricSectionId"] for card in cards} == sections and state["searchFilter"] == ""


def test_a_tag_holds_the_view_of_hundreds_of_cells():
    state = view.state_of(["tiny"], [f"{number * 2654435761 % 2**128:032x}" for number in range(400)])
    text = view.encoded(state)
    assert len(text) < 20_000 and text.startswith("deflate;")
    assert json.loads(zlib.decompress(base64.b64decode(text.partition(";")[2]))) == state


def test_a_link_names_the_view_and_goes_past_the_page_of_traces():
    assert view.link("http://host", "7", "abc") == (
        "http://host/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=abc")
