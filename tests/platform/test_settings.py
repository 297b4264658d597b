"""What `opd up` is asked for: hosts, passwords, ports."""
import argparse
import os
import socket
import stat

import pytest

from flows.cli.platform import add_up_options
from flows.platform import ports, settings
from flows.platform.settings import PlatformError, asked_for

PREFECT, MLFLOW = settings.PREFECT_PASSWORD, settings.MLFLOW_PASSWORD


@pytest.fixture(autouse=True)
def no_passwords(monkeypatch):
    """None of the variables that are read here is set."""
    for name in (PREFECT, MLFLOW, settings.ALARM, settings.DATABASE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def test_loopback_needs_no_password():
    assert asked_for("127.0.0.1", 4200, 5000, "", 1).prefect_auth == ""
    assert [settings.is_loopback(host) for host in ("localhost", "::1", "127.0.0.9")] == [True] * 3
    assert [settings.is_loopback(host) for host in ("0.0.0.0", "::", "10.1.2.3", "somewhere.org")] == [False] * 4


@pytest.mark.parametrize("given, missing", [
    ({}, f"{PREFECT}, {MLFLOW}"), ({PREFECT: "opd:secret"}, MLFLOW), ({MLFLOW: "long enough a word"}, PREFECT)])
def test_a_host_that_others_reach_needs_both_passwords(given, missing, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlatformError, match=f"missing: {missing}\\. Export {PREFECT}=user:password"):
        asked_for("0.0.0.0", 4200, 5000, "", 1)


def test_passwords_come_from_files_too(monkeypatch, tmp_path):
    (tmp_path / "one").write_text("opd:secret\n")
    (tmp_path / "two").write_text("long enough a word\n")
    monkeypatch.setenv(f"{PREFECT}_FILE", str(tmp_path / "one"))
    monkeypatch.setenv(f"{MLFLOW}_FILE", str(tmp_path / "two"))
    wanted = asked_for("0.0.0.0", 4200, 5000, "", 1)
    assert (wanted.prefect_auth, wanted.mlflow_auth) == ("opd:secret", "admin:long enough a word")
    monkeypatch.setenv(f"{MLFLOW}_FILE", str(tmp_path / "three"))
    with pytest.raises(PlatformError, match="three, which cannot be read"):
        asked_for("0.0.0.0", 4200, 5000, "", 1)


@pytest.mark.parametrize("name, value, told", [
    (PREFECT, "secret", "has the form user:password"), (PREFECT, ":secret", "has the form user:password"),
    (MLFLOW, "short", "has 5 characters, MLflow wants 12")])
def test_a_password_that_a_server_would_refuse_is_refused_first(name, value, told, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(PlatformError, match=told):
        asked_for("127.0.0.1", 4200, 5000, "", 1)


def test_a_password_on_the_command_line_is_refused(monkeypatch):
    for address in ("opd:secret@db/opd", "opd:sec/ret@db/opd", "opd@db/opd?password=secret"):
        with pytest.raises(PlatformError, match="OPD_DATABASE_URL"):
            asked_for("127.0.0.1", 4200, 5000, f"postgresql://{address}", 1)
    monkeypatch.setenv(settings.DATABASE, "postgresql://opd:secret@db/opd")
    assert asked_for("127.0.0.1", 4200, 5000, "", 1).database_url == "postgresql://opd:secret@db/opd"


def test_only_postgresql_and_sqlite_are_known():
    with pytest.raises(PlatformError, match="mysql"):
        asked_for("127.0.0.1", 4200, 5000, "mysql://db/opd", 1)


def test_no_option_takes_a_password():
    parser = argparse.ArgumentParser()
    add_up_options(parser)
    assert not [option for action in parser._actions for option in action.option_strings
                if "pass" in option or "auth" in option]


def test_settings_are_kept_for_their_owner_only(monkeypatch):
    monkeypatch.setenv(PREFECT, "opd:secret")
    wanted = asked_for("127.0.0.1", 4200, 5000, "", 2)
    settings.write(wanted)
    assert settings.read() == wanted and "secret" not in repr(wanted)
    assert stat.S_IMODE((settings.folder() / "settings.json").stat().st_mode) == 0o600


def test_no_settings_no_platform():
    assert settings.read() is None


def test_a_taken_port_is_refused_with_who_holds_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=rf"port {port} .*pid {os.getpid()}: .*--mlflow-port"):
            ports.demand("mlflow", "127.0.0.1", port)
    ports.demand("mlflow", "127.0.0.1", port)  # closed: free
