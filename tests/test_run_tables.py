"""What a run's tables say beside the numbers: shared questions, and what rules found."""
import json

from flows.tables import markdown_of_run
from tasks.opd.evaluation.findings import Finding
from tasks.opd.evaluation.reports import overlap_line
from tasks.opd.store.artifacts import Artifact


def report(name: str, **counts) -> Artifact:
    """A report of one question."""
    made = Artifact(kind="report", fingerprint=name, digest="", counts={"avg": 1.0, **counts})
    made.path.mkdir(parents=True, exist_ok=True)
    (made.path / "report.json").write_text(json.dumps({"mean_reward": {"tiny:0": 1.0, "tiny:1": 0.0}}))
    return made


def test_what_questions_share_with_the_prompts_trained_on_stands_below_their_table_and_findings_at_the_end(opd_home):
    start, end = report("a"), report("b", overlapping_share=0.125, contaminated_share=0.05)
    said = ("12.5% of the questions share 13 words in a row with a prompt trained on or its solution, 5.0% most of "
            "their words.")
    assert overlap_line(end) == said and overlap_line(start) == ""
    more = report("c", overlapping_share=0.125, contaminated_share=0.05, trained_overlapping_share=0.25,
                  trained_contaminated_share=0.1)
    assert overlap_line(more) == (f"{said} 25.0% of the questions share 13 words in a row with these or any rollout, "
                                  "10.0% most of their words.")
    result = {"recipe": "gkd", "seed": 0, "start": {"tiny": start}, "end": {"tiny": end}, "evaluation": [],
              "checkpoint": Artifact(kind="checkpoint", fingerprint="c", digest="", counts={}),
              "findings": [Finding(rule="loops", rounds=3, text="half of it repeats")]}
    _, _, shown = markdown_of_run(result).partition("### tiny")
    table, _, found = shown.partition(said)
    assert "| gkd |" in table and found == "\n\n### Findings\n\n- round 3, `loops`: half of it repeats."
    assert said not in markdown_of_run(result | {"end": {"tiny": start}})
