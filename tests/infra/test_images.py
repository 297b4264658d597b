"""The images and the compose file: sound by their own linters, hardened, and of the versions of this repository."""
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.infra_files import INFRA, ROOT, cluster, compose, found, instructions, needs

SERVICES = list(compose()["services"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FINAL = {"servers", "kubernetes-worker", "worker"}


def check_compose(file) -> subprocess.CompletedProcess:
    """compose-spec's own JSON schema, over a file."""
    return subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file],
                          capture_output=True, text=True, timeout=60)


def hadolint(text: str) -> subprocess.CompletedProcess:
    """hadolint over a Dockerfile's text."""
    return subprocess.run([found("hadolint"), "-"], input=text, capture_output=True, text=True, timeout=60)


@needs("check_jsonschema")
def test_compose_is_what_its_specification_says(tmp_path):
    checked = check_compose(INFRA / "compose.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = (INFRA / "compose.yaml").read_text().replace("restart: unless-stopped", "restrat: unless-stopped")
    (tmp_path / "wrong.yaml").write_text(wrong)
    assert check_compose(tmp_path / "wrong.yaml").returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name):
    service = compose()["services"][name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & set(service)
    assert service.get("user") == "postgres" or service["image"].startswith("${OPD_")  # ours end with USER 10001
    assert service["restart"] in ("unless-stopped", "on-failure:3")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_loopbacks_and_the_database_has_none(name):
    ports = compose()["services"][name].get("ports", [])
    assert all(port.startswith("${OPD_BIND:-127.0.0.1}:") for port in ports)
    assert len(ports) == (name in ("prefect", "mlflow"))
    assert compose()["networks"]["database"] == {"internal": True}
    assert compose()["services"]["postgres"]["networks"] == ["database"]


def test_what_a_service_refers_to_is_there():
    known = {kind: set(compose()[kind]) for kind in ("services", "volumes", "networks", "secrets")}
    for name, service in compose()["services"].items():
        assert set(service.get("depends_on", {})) <= known["services"], name
        assert set(service["networks"]) <= known["networks"] and set(service.get("secrets", [])) <= known["secrets"]
        sources = {mount.split(":")[0] for mount in service.get("volumes", [])}
        assert all((INFRA / source).is_file() for source in sources if source[0] == ".")
        assert {source for source in sources if source[0] != "."} <= known["volumes"], name
        assert all("condition" in about for about in service.get("depends_on", {}).values())


def test_who_is_waited_for_says_that_it_is_well():
    # A container's own check counts too: that of the worker's image stands in the Dockerfile.
    by_image, stage = {}, ""
    for name, rest in instructions():
        stage = rest.split()[-1] if name == "FROM" else stage
        if name == "HEALTHCHECK":
            by_image[stage] = rest != "NONE"
    for service in compose()["services"].values():
        for other in service.get("depends_on", {}):
            about = compose()["services"][other]
            checked = "healthcheck" in about or by_image[about["build"]["target"]]
            assert checked, other


def test_the_example_lists_every_variable_with_its_default():
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (INFRA / "compose.yaml").read_text()))
    assert not re.findall(r"\$\w|\$\{\w+\}", (INFRA / "compose.yaml").read_text())
    lines = [line for line in (INFRA / ".env.example").read_text().splitlines() if line and line[0] != "#"]
    assert dict(line.split("=", 1) for line in lines) == used


@needs(command="hadolint")
def test_hadolint_has_nothing_to_say():
    text = (INFRA / "Dockerfile").read_text()
    checked = hadolint(text)
    assert checked.returncode == 0, checked.stdout
    assert "DL3008" in hadolint(text.replace("# hadolint ignore=DL3008\n", "")).stdout


def test_an_image_runs_as_nobodys_root():
    user, stage, users = "root", "", {}
    for name, rest in instructions():
        stage, user = (rest.split()[-1], users.get(rest.split()[0], "root")) if name == "FROM" else (stage, user)
        users[stage] = user = rest if name == "USER" else user
    assert {users[stage] for stage in FINAL} == {"10001:10001"}


def test_versions_are_those_of_the_project():
    text = (INFRA / "Dockerfile").read_text()
    [vllm] = PROJECT["optional-dependencies"]["vllm"]
    [torch] = [line for line in PROJECT["dependencies"] if line.startswith("torch==")]
    assert f"{torch} {vllm}" in text
    assert not re.search(r"python:3\.(?!11\.)", text)  # what infra/constraints.txt was resolved for
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 4 and all(re.search(r"-c \S*infra/constraints\.txt", line) for line in installs)
    extras = re.search(r"-e '\.\[([^]]*)\]'", text).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_bases_are_pinned():
    bases = [rest.split("=", 1)[1] for name, rest in instructions() if name == "ARG"]
    bases += [service["image"] for service in compose()["services"].values() if "build" not in service]
    assert len(bases) == 3 and all(re.search(r":\d+\.\d+[.\d]*-", base) for base in bases)


def test_what_is_copied_is_there():
    copied = [word for name, rest in instructions() if name == "COPY" and "--from" not in rest
              for word in rest.split()[:-1]]
    assert len(copied) > 4 and all((ROOT / word).exists() for word in copied)


def test_both_files_say_the_same_of_the_servers():
    """What the compose file and the cluster's servers set is the same, but for how the secrets come."""
    for name in ("prefect", "mlflow"):
        there = {entry["name"]: entry.get("value")
                 for entry in cluster()[f"Deployment/{name}"]["spec"]["template"]["spec"]["containers"][0]["env"]}
        here = compose()["services"][name]["environment"]
        assert {key.removesuffix("_FILE") for key in here} == set(there)
        assert cluster()[f"Deployment/{name}"]["spec"]["template"]["spec"]["containers"][0]["args"] \
            == compose()["services"][name]["command"]
        plain = {key: value for key, value in there.items() if value and "$" not in str(here.get(key))}
        assert plain == {key: here[key] for key in plain}


def test_yaml_has_no_key_twice():
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
        loader.flatten_mapping(node)
        return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}
    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    for file in [*INFRA.glob("*.yaml"), *(INFRA / "kubernetes").glob("*.yaml")]:
        assert list(yaml.load_all(file.read_text(), Strict))
