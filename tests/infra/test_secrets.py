"""Passwords come from files: infra/with-secrets, make-secrets and databases.sh do so, and nothing goes past them."""
import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.infra_files import INFRA, ROOT, compose, environments, needs, pods, units, values

SECRET = re.compile(r"(PASSWORD|AUTH_STRING|FLASK_SERVER_SECRET_KEY|TOKEN|API_KEY)$")
MADE = {"postgres_password", "prefect_db_password", "mlflow_db_password", "prefect_auth", "mlflow_password",
        "mlflow_session_key"}


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A script of infra/ with nothing but PATH and `environment` set."""
    return subprocess.run([INFRA / script, *arguments], capture_output=True, text=True, timeout=60,
                          env={"PATH": os.environ["PATH"], **environment})


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> Path:
    """A folder that infra/make-secrets filled."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    assert run("make-secrets", str(folder)).returncode == 0
    return folder


def test_a_variable_gets_what_its_file_holds(tmp_path):
    (tmp_path / "key").write_text("two words, $HOME and 'quotes'\n")
    result = run("with-secrets", "env", PGPASSWORD_FILE=str(tmp_path / "key"),
                 OPD_TEACHER_KEY_FILE=str(tmp_path / "key"), SSL_CERT_FILE="/a/file", TLS_KEY_FILE="/another")
    lines = result.stdout.splitlines()
    assert "PGPASSWORD=two words, $HOME and 'quotes'" in lines
    assert "OPD_TEACHER_KEY=two words, $HOME and 'quotes'" in lines
    # What names a file that its tool reads itself stays as it is.
    assert {line for line in lines if "FILE" in line} == {"SSL_CERT_FILE=/a/file", "TLS_KEY_FILE=/another"}
    assert not any(line.startswith(("SSL_CERT=", "TLS_KEY=")) for line in lines)


@pytest.mark.parametrize("content, extra, said", [
    (None, {}, "cannot read"), ("", {}, "is empty"), ("\n", {}, "is empty"), ("x", {"TOKEN": "y"}, "are both set")])
def test_a_secret_that_is_not_there_stops_the_command(tmp_path, content, extra, said):
    if content is not None:
        (tmp_path / "key").write_text(content)
    result = run("with-secrets", "echo", "started", TOKEN_FILE=str(tmp_path / "key"), **extra)
    assert result.returncode == 1 and said in result.stderr and "TOKEN" in result.stderr
    assert "started" not in result.stdout


def test_the_command_takes_the_scripts_place_and_its_exit_code(tmp_path):
    (tmp_path / "key").write_text("x")
    assert run("with-secrets", "sh", "-c", "exit 7", TOKEN_FILE=str(tmp_path / "key")).returncode == 7
    shown = run("with-secrets", "sh", "-c", "tr '\\0' ' ' < /proc/self/cmdline; echo; cat /proc/$$/comm",
                TOKEN_FILE=str(tmp_path / "key"))
    assert shown.stdout.splitlines()[-1] == "sh"


def test_secrets_are_made_once_and_are_their_owners(secrets):
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    assert set(before) == MADE and len(set(before.values())) == len(MADE)
    assert all(len(value) >= 48 and "\n" not in value for value in before.values())
    assert before["prefect_auth"].startswith("admin:")
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    (secrets / "mlflow_password").unlink()
    run("make-secrets", str(secrets))
    after = {file.name: file.read_text() for file in secrets.iterdir()}
    assert {name for name in MADE if before[name] != after[name]} == {"mlflow_password"}


def test_every_secret_asked_for_is_made_and_the_other_way_round():
    asked = {"compose": set(compose()["secrets"])}
    asked["kubernetes"] = {entry["valueFrom"]["secretKeyRef"]["key"] for pod in pods().values()
                           for entry in pod["containers"][0]["env"] if "valueFrom" in entry}
    asked["kubernetes"] |= {item["key"] for pod in pods().values() for volume in pod["volumes"]
                            for item in volume.get("secret", {}).get("items", [])}
    assert asked == {"compose": MADE, "kubernetes": MADE}
    # Over its socket PostgreSQL knows the user: no password of a database.
    loaded = {value.partition(":")[0] for name in units() for value in values(name, "LoadCredential")}
    assert loaded == {"prefect_auth", "mlflow_password", "mlflow_session_key"}


def test_a_service_has_the_secrets_that_it_reads_and_no_more():
    for name, service in compose()["services"].items():
        read = {Path(value).name for value in service.get("environment", {}).values()
                if str(value).startswith("/run/secrets/")}
        script = {"prefect_db_password", "mlflow_db_password"} if name == "postgres" else set()  # databases.sh
        assert set(service.get("secrets", [])) == read | script, name
    for name in units():
        read = {value.removeprefix("%d/") for value in environments()[f"unit {name}"].values() if value[:3] == "%d/"}
        assert {value.partition(":")[0] for value in values(name, "LoadCredential")} == read, name


def test_no_secret_stands_in_an_environment():
    # The value of a reference is None; NAME_FILE and POSTGRES_PASSWORD_FILE end otherwise.
    shown = [(place, key) for place, variables in environments().items() for key, value in variables.items()
             if value is not None and (SECRET.search(key) or re.search("://[^/]*:[^/]*@", str(value)))]
    assert shown == []


def test_secrets_go_into_no_commit_and_no_image():
    listed = subprocess.run(["git", "check-ignore", "infra/secrets/prefect_auth", "infra/.env"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode == 128:
        pytest.skip("not a git checkout")
    assert listed.stdout.split() == ["infra/secrets/prefect_auth", "infra/.env"]
    lines = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    ignored = [line for line in lines if line[:1] not in ("#", "")]
    assert ignored[0] == "*" and ignored.index("infra/secrets") > ignored.index("!infra") < ignored.index("infra/.env")


@contextlib.contextmanager
def answering(status: int):
    """The address of a server that answers every GET with `status`."""
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/health"
        server.shutdown()


@pytest.mark.parametrize("status, code", [(200, 0), (503, 1), (401, 1)])
def test_a_health_check_tells_well_from_ill(status, code):
    with answering(status) as url:
        # Nobody listens on port 9: through that proxy, no address of this machine would be well.
        result = subprocess.run([sys.executable, INFRA / "healthy.py", url], env={"http_proxy": "http://127.0.0.1:9"},
                                capture_output=True, text=True, timeout=60)
    assert result.returncode == code and (str(status) in result.stderr) == bool(code)


def test_a_health_check_of_nothing_fails():
    with answering(200) as url:
        pass
    assert subprocess.run([sys.executable, INFRA / "healthy.py", url], capture_output=True, timeout=60).returncode == 1


@pytest.fixture
def postgres(tmp_path, secrets):
    """The folder of a PostgreSQL's socket, as `postgres` there without a password, over TCP by SCRAM; and its port."""
    folder, port = Path("/tmp") / f"infra-{os.getpid()}", 20000 + os.getpid() % 20000
    folder.mkdir()
    user = {"user": 65534, "group": 65534} if os.getuid() == 0 else {}  # PostgreSQL refuses to run as root
    os.chown(folder, *(user.values() or (-1, -1)))
    binaries = Path(os.path.realpath(shutil.which("postgres"))).parent
    binaries = binaries if (binaries / "initdb").exists() else Path(shutil.which("initdb")).parent
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

    def control(*words: str) -> None:
        subprocess.run([*map(str, words)], cwd=folder, check=True, timeout=60, stdout=subprocess.DEVNULL, **user,
                       env={"PATH": os.environ["PATH"], "HOME": str(folder)})
    try:
        control(binaries / "initdb", "-D", folder / "data", "-U", "postgres", "--no-sync", "--auth-local=trust",
                "--auth-host=scram-sha-256")
        control(binaries / "pg_ctl", "-D", folder / "data", "-o", settings, "-l", folder / "log", "-w", "start")
        yield folder, port
        control(binaries / "pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@needs(command="postgres")
@needs("psycopg2")
def test_each_server_has_a_database_that_the_other_cannot_enter(postgres, secrets):
    import psycopg2
    folder, port = postgres
    made = run("databases.sh", SECRETS=str(secrets), PGHOST=str(folder), PGPORT=str(port))
    assert made.returncode == 0, made.stderr
    for name in ("prefect", "mlflow"):
        password = (secrets / f"{name}_db_password").read_text()
        with psycopg2.connect(host="127.0.0.1", port=port, user=name, dbname=name, password=password) as connection:
            connection.cursor().execute("create table mine (id int); create extension if not exists pg_trgm")
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(host="127.0.0.1", port=port, user=name, dbname=name, password="wrong")
        other = {"prefect": "mlflow", "mlflow": "prefect"}[name]
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(host="127.0.0.1", port=port, user=name, dbname=other, password=password)
    assert run("databases.sh", SECRETS=str(secrets), PGHOST=str(folder), PGPORT=str(port)).returncode != 0
