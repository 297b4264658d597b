"""The cluster's files without a cluster: against Kubernetes' own schemas, and rendered by Prefect's own classes."""
import asyncio
import copy
import json
import re
import subprocess
import uuid
from argparse import Namespace
from importlib import metadata
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from prefect.utilities.schema_tools.validation import validate
from prefect.workers.base import BaseJobConfiguration

from flows.cli import jobs
from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import loading
from tests.infra_files import INFRA, ROOT, TEMPLATE, cluster, compose, found, needs, pods

VARIABLES = TEMPLATE["variables"]["properties"]
CLIENT = SimpleNamespace()  # asked for blocks and variables only, and the template refers to none
needs_schemas = needs("kubernetes_validate")


def objections(document: dict) -> str:
    """What Kubernetes 1.37 would refuse of an object, unknown fields included; empty when it takes it."""
    import kubernetes_validate
    try:
        kubernetes_validate.validate(document, "1.37", strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return ""


def without_prefects_fields(job: dict) -> dict:
    """A Job without the two fields that Prefect's worker demands of its pod, where Kubernetes knows none such."""
    job = copy.deepcopy(job)
    pod = job["spec"]["template"]["spec"]
    assert pod.pop("parallelism") == pod.pop("completions") == 1
    return job


class JobOnly(BaseJobConfiguration):
    """Prefect's configuration of a worker's job, with the one field that the template adds."""
    job_manifest: dict
    namespace: str


def rendered(kind: type[BaseJobConfiguration] = JobOnly, **values) -> BaseJobConfiguration:
    """The template filled in as a Prefect worker does it."""
    return asyncio.run(kind.from_template_and_values(TEMPLATE, values, client=CLIENT))


def options(**changed) -> Namespace:
    """What `opd jobs` was asked."""
    return Namespace(**{"suite": "demo", "overrides": [], "template": jobs.TEMPLATE, "job": [], **changed})


@needs_schemas
@pytest.mark.parametrize("name", cluster())
def test_an_object_is_what_kubernetes_knows(name):
    assert objections(cluster()[name]) == ""


@needs_schemas
def test_a_field_that_is_unknown_or_of_another_type_is_seen():
    for change in ({"replicaz": 1}, {"replicas": "one"}):
        deployment = cluster()["Deployment/mlflow"]
        assert "replica" in objections({**deployment, "spec": {**deployment["spec"], **change}})


@needs_schemas
def test_a_flow_run_becomes_a_job_with_its_gpus():
    configuration = rendered(gpus=4, memory="128Gi", name="gkd", command="prefect flow-run execute",
                             node_selector={"gpu": "h100"}, labels={"suite": "demo"}, working_dir="/opt/opdlab")
    job = without_prefects_fields(configuration.job_manifest)
    pod = job["spec"]["template"]["spec"]
    split = {**pod, "containers": [{**pod["containers"][0], "args": ["prefect"]}]}  # the worker splits the command
    assert objections({**job, "spec": {**job["spec"], "template": {"spec": split}}}) == ""
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "8", "memory": "128Gi", "nvidia.com/gpu": 4},
        "limits": {"memory": "128Gi", "nvidia.com/gpu": 4}}
    assert pod["nodeSelector"] == {"gpu": "h100"} and job["metadata"]["generateName"] == "gkd-"
    assert pod["volumes"][0] == {"name": "store", "persistentVolumeClaim": {"claimName": "opd-store"}}
    assert job["spec"]["backoffLimit"] == 0  # Prefect starts a run again, not Kubernetes


@needs_schemas
@needs("prefect_kubernetes")
def test_prefects_kubernetes_worker_makes_a_job_that_kubernetes_takes():
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
    run = FlowRun(id=uuid.UUID(int=1), flow_id=uuid.UUID(int=2), name="GKD 0")
    configuration = rendered(KubernetesWorkerJobConfiguration, gpus=2, env={"OPD_PROGRESS": "0"},
                             mlflow_url="https://mlflow.example.org")
    configuration.prepare_for_flow_run(run)
    job = without_prefects_fields(configuration.job_manifest)
    assert objections(job) == ""
    [container] = job["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert len(environment) == len(container["env"])
    assert environment["PREFECT__FLOW_RUN_ID"]["value"] == str(run.id)
    assert environment["OPD_PROGRESS"]["value"] == "0"
    assert environment["OPD_MLFLOW_URL"]["value"] == "https://mlflow.example.org"
    assert environment["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"]["key"] == "mlflow_password"
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert job["metadata"]["labels"]["prefect.io/flow-run-id"] == str(run.id)
    assert job["metadata"]["generateName"] == "gkd-0-"


def test_the_template_uses_every_variable_and_names_no_other():
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(VARIABLES)
    assert all(about["title"] and about["description"] for about in VARIABLES.values())


def test_the_template_takes_what_opd_deploy_sets():
    source = (ROOT / "flows/forms/registration.py").read_text()
    [names] = re.findall(r"job_variables=\{([^}]*)\}", source)
    assert set(re.findall(r'"(\w+)":', names)) == {"working_dir"} <= set(VARIABLES)


def test_defaults_are_what_the_templates_schema_allows():
    defaults = {name: about["default"] for name, about in VARIABLES.items() if about.get("default") is not None}
    assert validate(defaults, TEMPLATE["variables"]) == []
    assert [error.json_path for error in validate({"gpus": -1, "memory": 5}, TEMPLATE["variables"])] \
        == ["$.gpus", "$.memory"]


@pytest.mark.parametrize("name", pods())
def test_a_pod_is_hardened(name):
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] in (999, 10001)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    assert pod.get("automountServiceAccountToken", True) == ("serviceAccountName" in pod)
    assert ("serviceAccountName" in pod) == (name == "Deployment/opd-worker")  # only the worker speaks to Kubernetes
    [container] = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                            "capabilities": {"drop": ["ALL"]}}
    assert "memory" in container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]} | (
        {"data"} if name == "StatefulSet/postgres" else set())


def test_what_a_pod_refers_to_is_there():
    kustomization = yaml.safe_load((INFRA / "kustomization.yaml").read_text())
    generated = {made["name"] for made in kustomization["configMapGenerator"]}
    for pod in pods().values():
        for volume in pod["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "opd-store")
            claim = VARIABLES["store_claim"]["default"] if claim == "{{ store_claim }}" else claim
            assert f"PersistentVolumeClaim/{claim}" in cluster()
            assert volume.get("configMap", {}).get("name", "opd-databases") in generated
    for entry in pods()["base-job-template"]["containers"][0]["env"]:
        service = re.match(r"http://(\w+):(\d+)", entry.get("value", ""))
        assert not service or cluster()[f"Service/{service[1]}"]["spec"]["ports"][0]["port"] == int(service[2])


def test_the_kustomization_lists_every_file():
    listed = yaml.safe_load((INFRA / "kustomization.yaml").read_text())
    assert sorted(listed["resources"]) == sorted(f"kubernetes/{file.name}" for file in INFRA.glob("kubernetes/*.yaml"))
    images = {container["image"] for pod in pods().values() for container in pod["containers"]}
    images = images - {"{{ image }}", compose()["services"]["postgres"]["image"]} | {VARIABLES["image"]["default"]}
    assert images == {image["name"] for image in listed["images"]}


@pytest.mark.skipif(found("kubectl") is None, reason="kubectl is not installed")
@needs_schemas
def test_kubectl_puts_it_together():
    built = subprocess.run(["kubectl", "kustomize", INFRA], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    made = list(yaml.safe_load_all(built.stdout))
    assert len(made) == len(cluster()) + 2 and {document["metadata"]["namespace"] for document in made} == {"opdlab"}
    [template] = [document for document in made if document["metadata"]["name"].startswith("opd-job-template")]
    assert json.loads(template["data"]["base-job-template.json"]) == TEMPLATE
    for document in made:
        assert objections(document) == ""


def test_the_kubernetes_worker_goes_with_the_servers_prefect():
    lines = [line for line in (INFRA / "kubernetes/requirements.txt").read_text().splitlines() if line[0] != "#"]
    pins = dict(line.split("==") for line in lines)
    constraints = dict(line.split("==") for line in (INFRA / "constraints.txt").read_text().splitlines()
                       if "==" in line and line[0] != "#")
    assert pins["prefect"] == constraints["prefect"]
    assert {name: version for name, version in pins.items() if constraints.get(name, version) != version} == {}


@needs("prefect_kubernetes")
def test_the_version_installed_is_the_one_that_was_tried():
    wanted = dict(line.split("==") for line in (INFRA / "kubernetes/requirements.txt").read_text().splitlines()
                  if line[0] != "#")
    assert metadata.version("prefect-kubernetes") == wanted["prefect-kubernetes"]
    asked = map(Requirement, metadata.requires("prefect-kubernetes"))
    [prefect] = [requirement for requirement in asked if requirement.name == "prefect"]
    assert prefect.specifier.contains(wanted["prefect"])


@needs_schemas
def test_a_cell_is_a_job_of_its_own():
    made, text = jobs.jobs(options(job=["gpus=2"], overrides=["seeds=[0,1]"]))
    assert json.loads(text) == made and made["kind"] == "List"
    assert len(made["items"]) == 6
    for job in made["items"]:
        assert objections(job) == ""
        assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert [job["metadata"]["generateName"] for job in made["items"]][:3] == [
        "demo-sft-seed0-", "demo-sft-seed1-", "demo-opd-reverse-kl-seed0-"]


def test_a_job_distils_the_recipe_of_its_cell(tmp_path):
    (tmp_path / "suite.yaml").write_text("name: s\nvariants: [gkd, sft]\nseeds: [0, 1]\nbaseline: start\n"
                                         "set: [pair=tiny]\nvariant_set: {gkd: [train.learning_rate=0.002]}\n")
    suite, overrides = str(tmp_path / "suite.yaml"), ["rounds=3", "seeds=[7]"]
    made, _ = jobs.jobs(options(suite=suite, overrides=overrides))
    _, cells = loading.load_suite(suite, overrides)
    for job, (_, seed, recipe) in zip(made["items"], cells, strict=True):
        command = job["spec"]["template"]["spec"]["containers"][0]["args"]
        assert command[:2] == ["opd", "distill"] and not command[2].startswith("/") and (ROOT / command[2]).is_file()
        assert loading.load(command[2], command[3:]) == recipe and recipe.seed == seed == 7


@pytest.mark.parametrize("setting, said", [("gpus=-1", "gpus: -1 is less than"), ("gpu=1", "gpu: no variable"),
                                           ("memory=64", "memory: 64 is not of type")])
def test_a_job_variable_that_the_template_does_not_allow_is_refused(setting, said):
    with pytest.raises(RecipeError, match=said):
        jobs.job_variables(TEMPLATE["variables"], ["image=mine", setting])


def test_a_recipe_that_is_in_no_image_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"defaults: {loading.CONFIGS}/variants/gkd.yaml\nname: mine\n")
    (tmp_path / "suite.yaml").write_text("name: s\nvariants: [mine.yaml]\nbaseline: start\nset: [pair=tiny]\n")
    with pytest.raises(RecipeError, match="a Job has only what is in its image"):
        jobs.jobs(options(suite=str(tmp_path / "suite.yaml")))


def test_a_jobs_name_is_one_that_kubernetes_takes():
    assert jobs.job_name("demo", "OPD_reverse.kl", "seed0") == "demo-opd-reverse-kl-seed0"
    assert len(jobs.job_name("s" * 40, "v" * 40, "seed0")) <= 57
