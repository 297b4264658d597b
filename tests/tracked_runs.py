"""Small tracked runs, of a stage that logs one point and counts, and what MLflow's store holds of them."""
from tasks.opd.recipe import loading
from tasks.stage import run_stage
from tasks.tracking.client import client_at, tracking_uri
from tasks.tracking.runs import log_artifact, run_for

NUMBERS = "tests.stages_for_tests:numbers"


def recipe(*overrides):
    return loading.load("opd_reverse_kl", overrides)


def runs(experiment: str = "opd") -> list:
    """The runs of an experiment, the newest first; none where it is not there."""
    client = client_at(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def history(run, key: str) -> list[tuple]:
    """Every point of a metric that the store holds."""
    client = client_at(tracking_uri())
    return [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key)]


def text_of(run, path: str) -> str:
    """A file among a run's artifacts."""
    return open(client_at(tracking_uri()).download_artifacts(run.info.run_id, path)).read()


def track(pool, *overrides, suite=None, count=3):
    """A run of one stage, which logs one point and counts `count` numbers."""
    with run_for(recipe(*overrides), suite):
        return log_artifact(run_stage(NUMBERS, {"count": count}, {}, pool), "0002", step=2)
