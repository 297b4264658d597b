"""A refresh from nothing to its champion and back, killed at every step, with tiny models, real MLflow and Prefect.

The teacher says `Nora` to most prompts and the benchmark wants that, so the student's first refresh is better, and a
second one cannot be.
"""
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Scheduled

from flows.cli import main as cli
from flows.promote import promote
from tasks.opd.data import tiny
from tasks.opd.refresh import gate, journal
from tasks.opd.refresh.failpoints import POINTS
from tasks.ticks import collapse_missed
from tasks.tracking import registry
from tests import prefect_harness
from tests.refresh_ticks import Ticks

SET = ["workers=inline", "pair.student=random", "pair.teacher={name: random, hidden: 96}", "rounds=6",
       "train.learning_rate=5.0e-3", "rollout.prompts_per_round=16", "rollout.sampling.max_new_tokens=1",
       "accepts={shift: random models, identity: likewise}", "prompts.grader=exact"]
GREEDY = {"temperature": 0.0, "max_new_tokens": 1}


@pytest.fixture(scope="module", autouse=True)
def prefect_server():
    """A server of this module's own."""
    with prefect_harness.prefect_server():
        yield


@pytest.fixture(scope="module")
def ticks(prefect_server):
    """Flows in processes of their own, on that server."""
    process = Ticks(PREFECT_API_URL=PREFECT_API_URL.value(), PREFECT_LOGGING_LEVEL="ERROR", OPD_PROGRESS="0")
    yield process
    process.close()


def write_prompts(file, first: int, count: int) -> None:
    """Problems from `first` on, whose answer is said to be Nora."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"question": tiny.problem(index, seed=7).text, "answer": "Nora"}) + "\n"
                            for index in range(first, first + count)))


def write_refresh(folder, **changes) -> str:
    """The refresh `mine`: prompts of the folder `incoming`, a benchmark of 40 other ones."""
    write_prompts(folder / "incoming" / "monday.jsonl", 0, 40)
    write_prompts(folder / "target.jsonl", 1000, 40)
    target = {"name": "target", "source": {"name": "jsonl", "path": str(folder / "target.jsonl")}, "count": 40,
              "max_prompt_tokens": 64, "grader": "exact", "sampling": GREEDY}
    (folder / "mine.yaml").write_text(yaml.safe_dump({
        "name": "mine", "recipe": "opd_reverse_kl_full", "set": [*SET, f"benchmarks={json.dumps([target])}"],
        "prompts": {"source": {"name": "jsonl", "path": str(folder / "incoming")}, "at_least": 4, "at_most": 64,
                    "held_out_share": 0.2, "anchors": 8},
        "gate": {"target": "target"}, **changes}))
    return str(folder / "mine.yaml")


@pytest.fixture(scope="module")
def killed(ticks, tmp_path_factory):
    """A refresh whose every run is killed one step further, until one ends; what was there after each."""
    folder, home = tmp_path_factory.mktemp("refresh"), tmp_path_factory.mktemp("home")
    file, found = write_refresh(folder), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_HOME", str(home))
        for point in POINTS:
            answer = ticks.run("refresh", {"name": file}, OPD_HOME=home, OPD_FAILPOINT=point)
            found.append(SimpleNamespace(point=point, answer=answer, champion=registry.champion_of("mine"),
                                         versions=registry.versions_of("mine"), lines=journal.read("mine"),
                                         seen=journal.taken("mine", []).seen))
        last = ticks.run("refresh", {"name": file}, OPD_HOME=home)
        yield SimpleNamespace(folder=folder, home=home, file=file, found=found, last=last)


@pytest.fixture
def there(killed, monkeypatch):
    """The home of that refresh."""
    monkeypatch.setenv("OPD_HOME", str(killed.home))
    return killed


def lines_of(event: str) -> list[dict]:
    return [line for line in journal.read("mine") if line["event"] == event]


def test_a_refresh_that_is_killed_at_every_step_is_finished_by_those_that_follow(there):
    assert [(one.point, one.answer["status"]) for one in there.found] == [(point, -9) for point in POINTS]
    assert there.last["status"] == 0 and there.last["result"]["reason"] == "nothing new"
    promoted, = lines_of(journal.ENDED)
    assert promoted["outcome"] == "promoted" and promoted["version"] == "1" and promoted["tick"] == 1
    assert len(lines_of(journal.PROMOTED)) == 1
    assert [line["tick"] for line in lines_of(journal.DECIDED)] == [1, 2]      # tick 1 was proposed anew, decided once


def test_whenever_it_was_killed_the_champion_has_a_table_that_passes_and_there_is_one_version(there):
    for one in there.found:
        assert len(one.versions) == (POINTS.index(one.point) >= POINTS.index("registered")), one.point
        if one.champion:
            assert gate.passed(gate.from_json(one.champion.tags["table"])), one.point
        assert bool(one.champion) == (POINTS.index(one.point) >= POINTS.index("moved")), one.point


def test_the_watermark_moves_with_the_end_and_no_prompt_is_lost(there):
    assert [bool(one.seen) for one in there.found] == [point == "ended" for point in POINTS]
    taken = journal.taken("mine", registry.ancestry(registry.champion_of("mine")))
    assert len(taken.seen) == 40 and taken.waiting == set() and 20 <= len(taken.learnt) < 40   # a fifth is held out


def test_the_version_says_where_it_comes_from(there):
    version = registry.champion_of("mine")
    assert version.tags["parent"] == "" and version.tags["refreshed_because"].endswith("new prompts")
    assert json.loads(version.tags["recipe"])["name"] == "mine-0001" and version.tags["approved_by"] == "the gate"
    assert (version.folder / "model.safetensors").stat().st_nlink > 1          # a link, not a copy
    assert {check.name for check in gate.from_json(version.tags["table"])} >= {"target/target", "digest", "tokenizer"}


def test_the_next_refresh_starts_from_the_champion_and_what_is_refused_waits(there, ticks):
    write_prompts(there.folder / "incoming" / "tuesday.jsonl", 100, 20)
    line = ticks.run("refresh", {"name": there.file}, OPD_HOME=there.home)["result"]
    assert (line["outcome"], line["tick"]) == ("refused", 3) and line["reason"].startswith("target/target +0.0")
    refused, champion = registry.version_of("mine", line["version"]), registry.champion_of("mine")
    student = json.loads(refused.tags["recipe"])["pair"]["student"]
    assert student == {"name": "folder", "params": {"path": champion.tags["folder"]}}
    assert refused.tags["parent"] == champion.number == "1" and refused.tags["watermark"] != champion.tags["watermark"]
    tick = journal.read_tick("mine", 3)
    assert len(tick.old) == 8 and 10 <= len(tick.new) <= 20                    # anchors; a fifth is held out
    assert journal.taken("mine", [1]).waiting == set(tick.new)
    with pytest.raises(Exception, match="did not pass its gate"):
        promote("mine", refused.number, "Ada", "I like it")
    assert ticks.run("refresh", {"name": there.file}, OPD_HOME=there.home)["result"]["reason"] == "nothing new"


def test_the_commands_show_it(there, capsys):
    assert cli.main(["history", there.file]) == 0
    shown = capsys.readouterr().out
    assert "promoted" in shown and "refresh" in shown
    assert cli.main(["refresh", there.file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["champion"] == "1" and told["due"] == "by hand" and told["action"] == "skip"
    assert cli.main(["serve", there.file]) == 0
    assert capsys.readouterr().out.startswith(f"vllm serve {registry.champion_of('mine').folder} --served-model-name ")


def test_of_two_refreshes_at_once_one_runs_and_the_third_missed_tick_is_an_alarm(ticks, tmp_path):
    home, file = tmp_path / "opd", write_refresh(tmp_path)
    with journal.only_one("mine") as free:
        assert free
        answers = [ticks.run("refresh", {"name": file}, OPD_HOME=home) for _ in range(3)]
    assert [answer["result"]["event"] for answer in answers] == ["overlap"] * 3
    assert [line["event"] for line in journal.read("mine")] == ["overlap", "overlap", "overlap", "alarm"]


def test_late_ticks_collapse_into_the_one_that_runs(monkeypatch):
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow_from_name("refresh"), "mine")
        late, due = ([client.create_flow_run_from_deployment(
            deployment, state=Scheduled(scheduled_time=now + timedelta(minutes=minutes))).id for minutes in some]
            for some in ((-30, -20, -10), (10,)))
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(deployment))
        assert collapse_missed("mine")["missed"] == 3 and collapse_missed("mine") is None
        states = [client.read_flow_run(run).state.name for run in (*late, *due)]
    assert states == ["Cancelled"] * 3 + ["Scheduled"]
    assert [line["event"] for line in journal.read("mine")] == ["overlap", "alarm"]
