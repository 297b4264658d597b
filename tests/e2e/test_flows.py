"""The flows on random tiny models, in this process, against a real Prefect server and a real MLflow store."""
import contextlib
import io
import json
import os
import shutil
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL

from flows.bootstrap import bootstrap
from flows.compare import compare
from flows.distill import distill
from flows.evaluate import evaluate
from flows.pools import lend_keys, pool_for, shared_pool
from flows.tables import of_run
from tasks import progress
from tasks.history import round_record
from tasks.opd.core.costs import NAMES
from tasks.opd.core.errors import OpdError
from tasks.opd.evaluation import final
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts, garbage
from tasks.opd.store.artifacts import Artifact, read_record
from tasks.score import teacher_of
from tasks.tracking.client import client_at, tracking_uri
from tasks.workers import pools
from tests import prefect_harness

TINY = ["workers=inline", "pair.student=random", "pair.teacher.name=random", "pair.teacher.hidden=96", "rounds=3",
        "prompts.count=64", "rollout.prompts_per_round=8", "rollout.sampling.max_new_tokens=16",
        "accepts={shift: random models}",
        "benchmarks.0.count=10", "benchmarks.0.sampling.max_new_tokens=16"]


@pytest.fixture(scope="session", autouse=True)
def prefect_server():
    """A server of these tests' own, started once."""
    with prefect_harness.prefect_server():
        yield


def quietly(run, *arguments) -> tuple:
    """What a flow returns, and what it says on standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return run(*arguments), said.getvalue()


def pages(kind: str, **wanted) -> list[dict]:
    """What Prefect's pages show: its server's answer to a filter."""
    request = urllib.request.Request(f"{PREFECT_API_URL.value()}/{kind}/filter", json.dumps(wanted).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def flow_run(name: str) -> dict:
    """The first flow run of a name."""
    return pages("flow_runs", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_ASC")[0]


def lately(found, wanted, timeout_seconds: float = 300):
    """What `found` returns once `wanted` holds of it: logs and task runs reach the server in batches."""
    until = time.monotonic() + timeout_seconds
    while not wanted(result := found()) and time.monotonic() < until:
        time.sleep(0.2)
    return result


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """One distillation, run twice in the same home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_HOME", str(tmp_path_factory.mktemp("home")))
        recipe = loading.load("opd_reverse_kl_full", TINY)
        first, _ = quietly(distill, recipe)
        second, said = quietly(distill, recipe)
        yield SimpleNamespace(recipe=recipe, first=first, second=second, said=said, home=artifacts.home())


@pytest.fixture
def there(twice, monkeypatch):
    """The home of that run."""
    monkeypatch.setenv("OPD_HOME", str(twice.home))
    return twice


def records(kind: str) -> list[dict]:
    """The records of all artifacts of a kind, by round where they have one."""
    found = [read_record(path) for path in (artifacts.home() / "artifacts" / kind).iterdir() if path.name[0] != "."]
    return sorted(found, key=lambda record: record["spec"].get("round", 0))


def mlflow_runs(experiment: str) -> dict:
    client = client_at(tracking_uri())
    return {run.info.run_name: run for run in
            client.search_runs([client.get_experiment_by_name(experiment).experiment_id])}


def test_every_round_trains_the_student_of_the_round_before(there):
    rounds = records("checkpoint")
    assert [record["spec"]["round"] for record in rounds] == [0, 1, 2]
    students = [record["inputs"]["student"] for record in rounds]
    assert [student["kind"] for student in students] == ["model", "checkpoint", "checkpoint"]
    assert [s["fingerprint"] for s in students[1:]] == [record["fingerprint"] for record in rounds[:2]]
    assert there.first["checkpoint"].fingerprint == rounds[2]["fingerprint"]
    assert [record["inputs"]["student"]["fingerprint"] for record in records("rollouts")] == [
        student["fingerprint"] for student in students]


def test_the_last_two_checkpoints_keep_their_weights_and_scores_lose_their_hidden_states(there):
    assert [record["retired"] for record in records("checkpoint")] == [True, False, False]
    assert all("hidden.safetensors" in record["files"] for record in records("scores"))
    assert not list(artifacts.home().glob("artifacts/scores/*/hidden.safetensors"))


def test_a_second_run_makes_nothing_and_returns_the_same(there):
    assert "made 0 artifacts" in there.said
    assert there.second == there.first


def test_a_controller_decides_by_finished_rounds_and_a_resumed_run_decides_alike():
    told, key = "train/reverse_kl/loss_mean", "terms.0.coefficient"
    recipe = loading.load("opd_reverse_kl_full", [*TINY, "controllers=[{name: proportional, moves: " + key + ", low: "
                                                  "0.5, high: 1.3, metric: " + told + ", target: 0.01, gain: 1.0}]"])
    first, _ = quietly(distill, recipe)
    rounds = records("checkpoint")
    # the KL of random models is far above 0.01 nats: the error is cut to 0.2, and the third value to the bound
    assert [r["spec"]["controlled"] for r in rounds] == [{key: 1.0}, {key: 1.2}, {key: 1.3}]
    assert [r["spec"]["terms"][0]["coefficient"] for r in rounds] == [1.0, 1.2, 1.3]
    run = mlflow_runs("opd")["opd_reverse_kl_full-seed0"]
    assert run.data.metrics[f"train/controlled_{key}"] == 1.3
    past = round_record(Artifact.from_json(rounds[1]))
    assert past["round"] == 1 and past["set"] == {key: 1.2} and past["counts"] == rounds[1]["counts"]
    shown = {told, "grade/reward_mean", "rollout/truncated_share", "score/teacher/teacher_logprob_mean_nats"}
    assert shown <= past["metrics"].keys() and not any("second" in name for name in past["metrics"])
    shutil.rmtree(artifacts.place("checkpoint", rounds[2]["fingerprint"]))  # as if interrupted in the third round
    again, said = quietly(distill, recipe)
    assert again["checkpoint"].fingerprint == first["checkpoint"].fingerprint and "made checkpoint" in said


def test_evaluations_on_the_way_make_a_curve_cost_as_evaluation_and_are_reused():
    plain = loading.load("opd_reverse_kl_full", TINY)
    first, said = quietly(distill, recipe := loading.load("opd_reverse_kl_full", [*TINY, "evaluate_every=2"]))
    assert len(records("report")) == len(records("divergence")) == 3     # at the start, after two rounds, at the end
    run = mlflow_runs("opd")["opd_reverse_kl_full-seed0"]
    curve = client_at(tracking_uri()).get_metric_history(run.info.run_id, "eval/tiny/reverse_kl_mean_nats")
    assert sorted(m.step for m in curve) == [0, 2, 3] and len({m.value for m in curve}) == 3
    second, said = quietly(distill, recipe)                              # resumed: nothing is made, no point is added
    assert "made 0 artifacts" in said and second == first
    again = client_at(tracking_uri()).get_metric_history(run.info.run_id, "eval/tiny/reverse_kl_mean_nats")
    assert len(again) == 3
    without, _ = quietly(distill, plain)                                 # the same rounds; evaluated once less
    assert without["checkpoint"] == first["checkpoint"] and without["end"] == first["end"]
    more, less = (of_run(result)["tiny"].rows[1].costs for result in (first, without))
    assert more.tokens == less.tokens and more.evaluation_tokens["student_written_tokens"] \
        > less.evaluation_tokens["student_written_tokens"]
    assert not garbage.survey(forget=[], older_than_seconds=0.0).garbage
    assert set(mlflow_runs("opd")) == {"opd_reverse_kl_full-seed0", "opd_reverse_kl_full-seed0 evaluate_every=0"}


def test_mlflow_has_rounds_ends_params_records_and_a_table_of_rollouts(there):
    run = mlflow_runs("opd")["opd_reverse_kl_full-seed0"]
    assert run.info.status == "FINISHED" and "hidden 96" in run.data.params["pair.teacher"]
    client = client_at(tracking_uri())
    for name in ("avg", "reverse_kl_mean_nats"):
        curve = client.get_metric_history(run.info.run_id, f"eval/tiny/{name}")
        assert [(m.step, m.value) for m in sorted(curve, key=lambda m: m.step)] == [
            (step, there.first[when]["tiny"].counts[name]) for step, when in ((0, "start"), (3, "end"))]
    tokens = client.get_metric_history(run.info.run_id, "round/trained_tokens")
    counted = [record["counts"]["tokens_seen"] for record in records("checkpoint")]
    assert [(m.step, m.value) for m in sorted(tokens, key=lambda m: m.step)] == list(enumerate([0, *counted]))
    for name in ("round/seconds", "train/loss_nats", "rollout/length_mean_tokens", "grade/reward_mean"):
        steps = {m.step for m in client.get_metric_history(run.info.run_id, name)}
        assert steps - {0} == {1, 2, 3}, name
    [table] = of_run(there.first).values()                           # what the run says it cost is what its table says
    assert (spent := table.rows[1].costs.tokens) == {name: run.data.metrics.get(f"round/{name}", 0) for name in NAMES}
    assert spent["student_written_tokens"] == sum(r["counts"]["tokens"] for r in records("rollouts"))
    stages = {key.partition("/")[0] for key in run.data.metrics}
    assert stages - {"system"} == {"eval", "exposure", "rollout", "grade", "score", "train", "trust", "round", "final"}
    assert run.data.metrics["final/rounds"] == 3 and run.data.metrics["final/reward_mean"] == there.first["end"][
        "tiny"].counts["avg"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "findings.json", "positions.json", "recipe.yaml", "report.html", "rollouts.json", "stages.json"}
    assert [(finding.rule, finding.rounds) for finding in there.first["findings"]] == [("strangers", 1)]    # untrained
    sent = open(client.download_artifacts(run.info.run_id, "report.html"), encoding="utf-8").read()
    assert sent == Path(there.first["report"]).read_text(encoding="utf-8") and "opd_reverse_kl_full-seed0 is" in sent
    stages = json.load(open(client.download_artifacts(run.info.run_id, "stages.json")))
    assert {stage["kind"] for stage in stages} == {
        "model", "prompts", "preflight", "rollouts", "grades", "scores", "checkpoint", "report", "divergence",
        "exposure"}
    assert run.data.tags["checkpoint.digest"] == there.first["checkpoint"].digest
    read = {(one.dataset.name, tag.value) for one in run.inputs.dataset_inputs for tag in one.tags}
    assert read == {("tiny", "train"), ("tiny", "test")}
    table = json.load(open(client.download_artifacts(run.info.run_id, "rollouts.json")))
    assert len(table["data"]) == 8 and {"prompt", "completion", "reward"} <= set(table["columns"])


def test_a_runs_page_in_prefect_has_its_tasks_its_log_its_table_and_the_way_to_mlflow(there):
    run = flow_run("opd_reverse_kl_full-seed0")
    only = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = lately(lambda: {task["name"] for task in pages("task_runs", **only)}, lambda names: len(names) > 17)
    named = {"models", "prompts-train-tiny", "prompts-test-tiny", "preflight", "publish-opd_reverse_kl_full-seed0"}
    assert named <= tasks
    made = [record["fingerprint"][:8] for record in records("checkpoint")]
    logs = lately(lambda: [log["message"] for log in pages("logs", logs={"flow_run_id": {"any_": [run["id"]]}})],
                  lambda lines: any("made divergence" in line for line in lines[-8:]))
    assert all(any(line.startswith(f"made checkpoint {name} in") for line in logs) for name in made)
    shown = {artifact["key"]: artifact for artifact in pages("artifacts", **only)}
    table, link = shown["table-opd-reverse-kl-full-seed0"], shown["mlflow-opd-reverse-kl-full-seed0"]
    assert "### tiny" in table["data"] and "| opd_reverse_kl_full |" in table["data"]
    tokens = there.first["end"]["tiny"].counts["divergence_tokens"]
    assert "Mean reverse KL to the teacher" in table["data"] and f"over {tokens:,} tokens; start" in table["data"]
    assert there.first["mlflow_page"] in link["data"]
    assert f"--workers 1 --backend-store-uri sqlite:///{there.home}/mlflow.db" in link["description"]
    assert shown["report-opd-reverse-kl-full-seed0"]["data"].endswith("/artifacts/report.html)")
    assert there.first["mlflow_charts"] in shown["charts-opd-reverse-kl-full-seed0"]["data"]
    tags = mlflow_runs("opd")["opd_reverse_kl_full-seed0"].data.tags
    assert tags["prefect.page"].endswith(f"/runs/flow-run/{tags['prefect.flow_run_id']}")
    assert f"[This run in Prefect]({tags['prefect.page']})" in tags["mlflow.note.content"]


def test_evaluating_a_runs_checkpoint_gives_the_runs_own_numbers(there):
    final = there.first["end"]["tiny"]
    for folder in (there.first["checkpoint"].path, there.first["checkpoint"].path / "model"):
        [report] = quietly(evaluate, there.recipe, str(folder))[0].values()
        assert (report.path / "samples.parquet").read_bytes() == (final.path / "samples.parquet").read_bytes()
    assert flow_run(f"evaluate-checkpoint-{there.first['checkpoint'].fingerprint[:8]}")


def test_bootstrap_makes_what_distill_then_finds(there):
    made, said = quietly(bootstrap, there.recipe)
    assert "made 0 artifacts" in said
    assert set(made["models"]) == {"student", "teacher"} and set(made["benchmarks"]) == {"tiny"}


def test_an_average_of_the_student_teaches_from_its_second_round_on_and_refined_rollouts_are_graded_again():
    recipe = loading.load("opsd", [*TINY, "rounds=2", "teacher.refresh.name=ema", "teacher.refresh.decay=0.5",
                                   "pair.context_tokens=300", "refine=[{name: truncate, tokens: 4}]"])
    quietly(distill, recipe)
    scores = sorted(records("scores"), key=lambda record: record["inputs"]["model"]["kind"], reverse=True)
    teachers = [(score["inputs"]["model"]["kind"], score["spec"]["folder"]) for score in scores]
    assert teachers == [("model", "model"), ("checkpoint", "ema")]
    assert all(score["inputs"]["rollouts"]["kind"] == "grades" for score in scores)
    refined = [grade for grade in records("grades") if grade["inputs"]["rollouts"]["kind"] == "refined"]
    assert len(refined) == 2 and len(records("grades")) == 4
    assert {record["counts"]["tokens"] for record in records("refined")} == {8 * 4}
    run = mlflow_runs("opd")["opsd-seed0"]
    for name in ("grade/reward_mean", "grade/unrefined/reward_mean"):    # each grading has its own curve
        points = client_at(tracking_uri()).get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in points) == [1, 2]


@pytest.mark.parametrize("refresh, expected", [
    ("frozen", ("a", "model")), ("live", ("b", "model")), ("ema", ("b", "ema"))])
def test_a_self_teacher_is_the_start_the_rounds_student_or_its_average(refresh, expected):
    recipe = loading.load("opsd", [f"teacher.refresh.name={refresh}"])
    start, now = (Artifact(kind=kind, fingerprint=name, digest="", counts={})
                  for kind, name in (("model", "a"), ("checkpoint", "b")))
    model, folder = teacher_of(recipe, "self", {"student": start}, now)
    assert (model.fingerprint, folder) == expected
    assert teacher_of(recipe, "self", {"student": start}, start) == (start, "model")  # the first round


SUITE = {"name": "small", "variants": ["opd_reverse_kl", "gkd"], "seeds": [0, 1], "baseline": "start",
         "set": [*TINY, "rounds=1"]}


def write_suite(folder, **changes):
    file = folder / "small.yaml"
    file.write_text(json.dumps({**SUITE, **changes}))
    return str(file)


def test_a_failed_cell_is_shown_as_failed_and_the_others_go_on(tmp_path):
    suite = write_suite(tmp_path, variant_set={"gkd": ["accepts={shift: ''}"]})  # preflight then refuses random models
    result, _ = quietly(compare, suite)
    assert result["failed"] == [["gkd", 0], ["gkd", 1]]
    rows = {row["variant"]: row for row in result["comparison"]["rows"]}
    assert rows["gkd"]["verdict"] == "failed" and "preflight is red" in rows["gkd"]["errors"]["0"]
    assert set(rows["opd_reverse_kl"]["by_seed"]) == {"0", "1"} and rows["start"]["verdict"] == "baseline"
    assert "gkd, seed 1: failed" in result["text"]
    assert (artifacts.home() / "suites" / "small" / "comparison.md").read_text().count("failed") >= 4
    page = (artifacts.home() / "suites" / "small" / "report.html").read_text(encoding="utf-8")
    assert "gkd, seed 0: " in page and "preflight is red" in page and "Failed: gkd." in page
    [cell_page] = (artifacts.home() / "reports").glob("gkd-seed0-*.html")
    assert "preflight is red" in cell_page.read_text(encoding="utf-8")
    runs = mlflow_runs("small")
    assert "report.html" in {file.path for file in client_at(tracking_uri()).list_artifacts(runs["small"].info.run_id)}
    assert {name: run.info.status for name, run in runs.items()} == {
        "small": "FINISHED", "gkd-seed0": "FAILED", "gkd-seed1": "FAILED", "opd_reverse_kl-seed0": "FINISHED",
        "opd_reverse_kl-seed1": "FINISHED"}
    suite, cell = runs["small"].data, runs["opd_reverse_kl-seed0"].data
    assert not suite.metrics and suite.tags["verdict"].endswith("failed: gkd (points on tiny)")
    assert {*final.NAMES} - cell.metrics.keys() == {"final/others_difference"}
    comparison = (artifacts.home() / "suites" / "small" / "comparison.md").read_text()
    assert suite.tags["mlflow.note.content"].endswith(f"({suite.tags['prefect.page']})\n\n{comparison}")
    assert result["mlflow_charts"].rpartition("/#/")[2] in suite.tags["mlflow.note.content"]
    prefect = flow_run("small")
    assert suite.tags["prefect.flow_run_id"] == prefect["id"] != cell.tags["prefect.flow_run_id"]
    assert result["mlflow_page"].endswith(f"/runs/{runs['small'].info.run_id}?workflowType=machine_learning")


def test_a_suite_of_which_no_cell_finishes_fails_with_a_cells_error(tmp_path):
    with pytest.raises(OpdError, match="preflight is red"):
        quietly(compare, write_suite(tmp_path, variants=["gkd"], seeds=[0]), ["accepts={shift: ''}"])
    page = (artifacts.home() / "suites" / "small" / "report.html").read_text(encoding="utf-8")
    assert "gkd, seed 0: " in page and "No variant has been compared with start yet." in page


@pytest.mark.parametrize("keep", [False, True])
def test_cells_share_scores_whose_hidden_states_go_with_the_last_and_a_forgotten_cell_frees_its_own(tmp_path, keep):
    suite = write_suite(tmp_path, variants=["opd_reverse_kl_full", "opd_jsd"], seeds=[0], variant_set={
        "opd_jsd": ["engine.batch_tokens=64"]}, set=[*TINY, "rounds=2", "benchmarks.0.count=4", f"keep_hidden={keep}"])
    _, said = quietly(compare, suite)
    assert said.count("made scores") == 3 and "is retired and needed" not in said  # round 0 once, round 1 by each cell
    assert len(list(artifacts.home().glob("artifacts/scores/*/hidden.safetensors"))) == (3 if keep else 0)
    _, said = quietly(compare, suite)
    assert "made 0 artifacts" in said and "was made from another" not in said

    assert garbage.survey().garbage == []
    found = garbage.survey(forget=["opd_jsd-seed0"])
    own = {"preflight": 1, "checkpoint": 2, "rollouts": 1, "grades": 1, "scores": 1, "exposure": 1, "report": 1,
           "divergence": 1}
    assert {what: number for what, (number, _) in garbage.totals(found.garbage).items()} == own
    assert garbage.collect(found) == [] and garbage.survey().garbage == []
    _, said = quietly(distill, loading.load_suite(suite)[1][0][2], "small")
    assert "made 0 artifacts" in said
    _, said = quietly(compare, suite)
    again = sum(own.values()) + (not keep)  # what was its own, and the hidden states of the round that both share
    assert f"made {again} artifacts" in said and "was made from another" not in said


def test_a_flow_within_another_has_its_workers_and_its_own_patience():
    short, long = (loading.load("gkd", ["workers=inline", f"engine.patience_seconds={n}"]) for n in (7, 70))
    with pools.for_run(long) as pool:
        token = shared_pool.set({"inline": pool})
        for recipe, patience in ((long, 70), (short, 7), (long, 70)):
            with pool_for(recipe) as lent:
                assert lent is pool and pool.patience == patience
        shared_pool.reset(token)


@flow
def reporting():
    """A flow at work: two reports, of which the second comes after the first was shown."""
    report = {"label": "score", "done": 128, "total": 512, "unit": "rollouts", "seconds": 64.0, "tokens": 12800}
    with pool_for(loading.load("opd_reverse_kl", ["workers=inline"])) as pool:
        pool.listener.stage_progress(report)
        time.sleep(1)
        pool.listener.stage_progress({**report, "done": 512, "seconds": 256.0})
    return pool.listener


def test_a_flow_run_has_one_progress_artifact_that_ends_where_the_work_did(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.2)
    filled = {"artifacts": {"type": {"any_": ["progress"]}}}
    before = {artifact["id"] for artifact in pages("artifacts", **filled)}
    assert not isinstance(reporting(), progress.Page)  # the pool may serve another flow run
    made = [artifact for artifact in pages("artifacts", **filled) if artifact["id"] not in before]
    assert len(made) == 1 and made[0]["data"] == 100.0 and made[0]["flow_run_id"]
    assert made[0]["description"] == "score: 512 / 512 rollouts, 2 rollouts/s, 50 tokens/s"


def test_progress_that_prefect_does_not_take_fails_no_run(monkeypatch):
    tried = []

    def refuse(*arguments):
        tried.append(arguments)
        raise ConnectionError("nobody is there")
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.2)
    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    reporting()
    assert len(tried) >= 2  # and it was tried again


def test_a_servers_key_comes_from_a_prefect_secret_where_the_environment_has_none(monkeypatch):
    Secret(value="sk-of-a-block").save("opd-tests-only-key")
    Secret(value="sk-of-another").save("tests-only-key")
    server = "pair.teacher={name: server, urls: ['http://127.0.0.1:9'], model: m, tokenizer: /t, key: %s}"
    for name, there, found in (("OPD_TESTS_ONLY_KEY", None, "sk-of-a-block"),
                               ("OPD_TESTS_ONLY_KEY", "sk-own", "sk-own"), ("OPD_TESTS_NOWHERE_KEY", None, None)):
        with monkeypatch.context() as patch:
            patch.setenv(name, there or "")
            if there is None:
                patch.delenv(name)
            lend_keys(loading.load("opd_reverse_kl", [server % name]))
            assert os.environ.get(name) == found
            os.environ.pop(name, None)
    recipe = loading.load("opd_reverse_kl", [server % "OPD_TESTS_ONLY_KEY"])  # whoever builds a recipe without checks
    other = recipe.pair.teacher.model_copy(update={"params": {**recipe.pair.teacher.params, "key": "TESTS_ONLY_KEY"}})
    lend_keys(recipe.model_copy(update={"pair": recipe.pair.model_copy(update={"teacher": other})}))
    assert "TESTS_ONLY_KEY" not in os.environ
