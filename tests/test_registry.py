"""Versions and aliases, in a real MLflow store: what may be champion, what a crash or a repetition leaves."""
import pytest

from tasks.opd.core.errors import DataError, EngineError
from tasks.opd.recipe import refreshes
from tasks.opd.refresh import gate, journal
from tasks.tracking import registry
from tasks.tracking.registry import CANDIDATE, CHAMPION, PREVIOUS, aliases_of, champion_of, promote, register, rollback

NAME = ""                               # of the refresh: each test's own, in one store, which takes seconds to make


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    """An empty store of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")
        yield


@pytest.fixture(autouse=True)
def name(request, monkeypatch):
    """Another refresh for every test."""
    monkeypatch.setitem(globals(), "NAME", request.node.name.removeprefix("test_")[:60])


def version(tick: int, *, passes=True, parent="", fingerprint=None):
    """A registered version with a model folder."""
    fingerprint = fingerprint or f"{tick:032x}"
    place = journal.folder(NAME) / "models" / fingerprint
    place.mkdir(parents=True, exist_ok=True)
    checks = [gate.check("target/tiny", passes, "+1.0", "> +0.0", "here")]
    tags = {"tick": str(tick), "fingerprint": fingerprint, "folder": str(place), "parent": parent, "digest": "d",
            "gate": gate.PASSED if passes else gate.REFUSED, "table": gate.to_json(checks)}
    return register(NAME, tags, "", None)


def by_hand(number, **changes):
    return promote(NAME, number, by="Ada", reason="it is better", **changes)


def test_there_is_no_champion_before_one_is_promoted():
    assert champion_of(NAME) is None and registry.versions_of(NAME) == [] and registry.ancestry(None) == []
    made = version(1)
    assert champion_of(NAME) is None and aliases_of(NAME) == {CANDIDATE: "1"} and made.number == "1"


def test_a_tick_is_registered_once_and_another_checkpoint_of_it_anew():
    assert [version(1).number, version(1).number, version(1, fingerprint="f" * 32).number] == ["1", "1", "2"]


def test_the_champion_carries_who_approved_it_why_and_over_what():
    version(1), version(2)
    assert by_hand("1").tags["promoted_over"] == ""
    second = by_hand("2", over="1")
    assert {key: second.tags[key] for key in ("promoted_over", "approved_by", "approval_reason")} == {
        "promoted_over": "1", "approved_by": "Ada", "approval_reason": "it is better"}
    assert aliases_of(NAME) == {CHAMPION: "2", PREVIOUS: "1"} and champion_of(NAME).number == "2"


def test_a_version_whose_table_does_not_pass_is_never_the_champion():
    version(1, passes=False)
    with pytest.raises(DataError, match="did not pass its gate.*target/tiny"):
        by_hand("1")
    assert CHAMPION not in aliases_of(NAME)


def test_a_tag_alone_does_not_make_a_table_pass():
    version(1, passes=False)
    with registry.opened() as client:
        client.set_model_version_tag(NAME, "1", "gate", gate.PASSED)
    with pytest.raises(DataError, match="did not pass"):
        by_hand("1")


def test_another_champion_than_the_one_it_was_gated_against_stops_it():
    version(1), version(2), version(3)
    by_hand("1")
    with pytest.raises(DataError, match="is version 1 now, not none"):
        by_hand("2", over="")
    by_hand("2", over="1")
    with pytest.raises(DataError, match="version 2 now, not 1"):
        by_hand("3", over="1")
    assert champion_of(NAME).number == "2"


def test_a_promotion_repeated_changes_nothing():
    version(1), version(2)
    by_hand("1"), by_hand("2", over="1")
    again = promote(NAME, "2", by="Bob", reason="again", over="1")
    assert again.tags["approved_by"] == "Ada" and again.tags["promoted_over"] == "1"


def test_a_rollback_goes_back_step_by_step_and_ends_at_the_first_champion():
    for tick in (1, 2, 3):
        version(tick)
        by_hand(str(tick))
    now, gone = rollback(NAME, by="Ada", reason="it swears")
    assert (now.number, gone) == ("2", "3") and aliases_of(NAME) == {CHAMPION: "2", PREVIOUS: "1"}
    assert registry.version_of(NAME, "3").tags["rolled_back"] == "Ada: it swears"
    assert rollback(NAME, by="Ada", reason="it too")[0].number == "1"
    with pytest.raises(DataError, match="version 1 is its first champion"):
        rollback(NAME, by="Ada", reason="more")


def test_a_rollback_does_not_need_the_alias_previous():
    version(1), version(2)
    by_hand("1"), by_hand("2")
    with registry.opened() as client:  # as a crash between two aliases leaves it
        client.set_registered_model_alias(NAME, PREVIOUS, "2")
    assert rollback(NAME, by="Ada", reason="said")[0].number == "1"


def test_nothing_promoted_nothing_to_go_back_to():
    with pytest.raises(DataError, match="nothing was promoted yet"):
        rollback(NAME, by="Ada", reason="said")


def test_a_version_whose_model_was_removed_is_not_gone_back_to():
    version(1), version(2)
    by_hand("1"), by_hand("2")
    registry.version_of(NAME, "1").folder.rmdir()
    with pytest.raises(DataError, match="is not in .* any more; raise keep_versions"):
        rollback(NAME, by="Ada", reason="said")
    assert champion_of(NAME).number == "2"


def test_ancestry_follows_what_was_distilled_from_what_and_not_what_was_promoted_when():
    version(1), version(2, parent="1"), version(3, parent="1"), version(4, parent="3")
    assert registry.ancestry(registry.version_of(NAME, "4")) == [4, 3, 1]


def test_models_stay_that_somebody_goes_back_to_and_the_newest_few():
    for tick in range(1, 7):
        version(tick)
    by_hand("1"), by_hand("2")
    ask = refreshes.load("tiny_nightly", [f"name={NAME}", "keep_versions=1"])
    assert [one.number for one in registry.worth_keeping(ask)] == ["1", "2", "6"]
    assert [one.number for one in registry.worth_keeping(ask.model_copy(update={"keep_versions": 0}))] == [
        "1", "2", "6"]                                   # 6 is the candidate


def test_an_unknown_version_is_named_with_those_that_are_there():
    version(1)
    with pytest.raises(DataError, match="has no version 9; it has 1"):
        by_hand("9")


def test_a_registry_that_does_not_answer_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(EngineError, match="holds the registry"):
        champion_of(NAME)
