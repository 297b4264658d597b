"""What a run does with what rules find: said once on a line, kept in its record and among its files in MLflow."""
import json

from tasks import findings as door
from tasks.opd.evaluation.findings import Finding
from tasks.opd.store import run_records
from tasks.opd.store.artifacts import Artifact
from tests.tracked_runs import recipe, runs, text_of

APART = {"round": 0, "set": {}, "counts": {"step": 1}, "metrics": {"trust/overlap_at_16": 0.25}}


def test_a_finding_is_said_once_and_kept_with_the_run(monkeypatch, capsys, opd_home):
    from tasks.tracking.runs import run_for
    monkeypatch.setattr(door, "round_record", lambda checkpoint, before: APART)
    history, found, nobody = [], [], Artifact(kind="checkpoint", fingerprint="f", digest="", counts={})
    with run_records.recorded("opd-seed0"), run_for(recipe()):
        for _ in range(2):
            door.observe(recipe(), nobody, history, found)
    assert len(history) == 2 and [finding.rule for finding in found] == ["strangers"]
    assert capsys.readouterr().err.count("finding after round 1, strangers: only 25%") == 1
    [record] = run_records.read_all()
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert [line["finding"]["rule"] for line in lines if "finding" in line] == ["strangers"]
    [shown] = json.loads(text_of(runs()[0], "findings.json"))
    assert Finding(**shown) == found[0]
