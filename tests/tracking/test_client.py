"""Where the store is, and what is shown of its address."""
import os

from tasks.opd.recipe import loading
from tasks.opd.store.artifacts import home
from tasks.tracking import client, outbox, states
from tasks.tracking.runs import run_for

SERVER, DATABASE = "http://me:p%40ss@127.0.0.1:9/path", "postgresql://me:p%40ss@127.0.0.1:9/mlflow"


def test_a_servers_password_is_moved_to_the_variable_that_mlflow_has_for_it(monkeypatch):
    monkeypatch.setattr(os, "environ", {"MLFLOW_TRACKING_URI": SERVER})
    address = "http://127.0.0.1:9/path"
    assert client.tracking_uri() == client.tracking_uri() == client.ui_command() == outbox.pages() == address
    assert os.environ == {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": "me",
                          "MLFLOW_TRACKING_PASSWORD": "p@ss"}


def test_links_lead_where_browsers_find_the_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("OPD_MLFLOW_URL", "https://mlflow.example.org/")
    assert outbox.pages() == "https://mlflow.example.org" and client.tracking_uri() == "http://mlflow:5000"
    monkeypatch.delenv("OPD_MLFLOW_URL")
    assert outbox.pages() == "http://mlflow:5000"


def test_a_user_without_a_password_leaves_the_password_that_was_set(monkeypatch):
    given = {"MLFLOW_TRACKING_URI": "https://me@127.0.0.1:9/path", "MLFLOW_TRACKING_PASSWORD": "p@ss"}
    monkeypatch.setattr(os, "environ", dict(given))
    assert client.tracking_uri() == given["MLFLOW_TRACKING_URI"] and os.environ == given


def test_a_databases_password_stays_in_the_address_that_is_used_and_in_none_that_is_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    assert client.tracking_uri() == DATABASE and client.under_home(DATABASE) == "postgresql://me:***@127.0.0.1:9/mlflow"
    assert '--backend-store-uri "$MLFLOW_TRACKING_URI"' in client.ui_command() and "p%40ss" not in client.ui_command()


def test_a_run_with_a_password_in_its_address_neither_prints_nor_keeps_it(monkeypatch, capfd):
    monkeypatch.setattr(outbox, "END_SECONDS", 0.2)
    client.import_client()
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # with ten, MLflow's lock is held for minutes
    for address in (SERVER, DATABASE):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, "")
        with run_for(loading.load("opd_reverse_kl")) as run:
            states.write(run.file, run.state)
        run.thread.join()                                   # which other tests of this process would wait for
        said = capfd.readouterr()
        assert said.err.count("MLflow at") == 1 and run.url() and run.charts()
        texts = [file.read_text() for file in (home() / "tracking").glob("*.json")]
        shown = "\n".join([said.err, said.out, run.url(), run.charts(), *texts])
        assert len(texts) == 1 and "p%40ss" not in shown and "p@ss" not in shown
