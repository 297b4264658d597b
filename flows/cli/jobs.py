"""The cells of a suite as Kubernetes Jobs, one each: `opd jobs SUITE | kubectl create -f -`.

A work pool makes a Job of every flow run, and a suite is one flow run: its cells share a Job. Where there are GPUs for
all of them, each gets a Job of its own that runs `opd distill` over the shared store. The suite itself, run afterwards
in the pool, finds the cells' artifacts there and makes the tables only.
"""
import argparse
import json
import re
from pathlib import Path

import yaml

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import loading
from tasks.opd.recipe.suite import Suite

ROOT = loading.CONFIGS.parent
TEMPLATE = ROOT / "infra" / "kubernetes" / "base-job-template.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `opd jobs`."""
    parser.add_argument("--template", type=Path, default=TEMPLATE, metavar="FILE", help="a work pool's job template")
    parser.add_argument("--job", action="append", default=[], metavar="NAME=VALUE",
                        help="one of the template's variables, such as gpus=2; several times")


def jobs(arguments: argparse.Namespace) -> tuple[dict, str]:
    """The Jobs as one List, for kubectl. Raises RecipeError where a Job could not run what is asked for."""
    plan, cells = loading.load_suite(arguments.suite, arguments.overrides)
    if plan.tune:
        raise RecipeError(f"{plan.name} tunes its variants before it runs them, which Jobs of single cells cannot: run "
                          "it with opd compare, or with tune={}")
    template = json.loads(arguments.template.read_text())
    chosen = job_variables(template["variables"], arguments.job)
    suite = loading.located("suite", arguments.suite, Path())
    others = [o for o in arguments.overrides if re.split(r"[.=]", o)[0] not in Suite.model_fields]
    made = []
    for variant, seed, _ in cells:
        settings = [*plan.set, *plan.variant_set.get(variant, []), *others, f"seed={seed}"]
        command = ["opd", "distill", in_image(loading.located("variant", variant, suite)), *settings]
        labels = {"opd/suite": plan.name, "opd/variant": Path(variant).stem, "opd/seed": str(seed)}
        made.append(manifest(template, {**chosen, "command": command, "labels": labels,
                                        "name": job_name(plan.name, Path(variant).stem, f"seed{seed}")}))
    result = {"apiVersion": "v1", "kind": "List", "items": made}
    return result, json.dumps(result, indent=2)


def job_variables(schema: dict, settings: list[str]) -> dict:
    """The template's defaults under `settings`, each NAME=VALUE. Raises RecipeError for what its schema refuses."""
    from prefect.utilities.schema_tools.validation import validate
    given = {name: yaml.safe_load(value) for name, _, value in (setting.partition("=") for setting in settings)}
    known = schema["properties"]
    errors = [f"--job {name}: no variable of the template; known: {', '.join(known)}" for name in given.keys() - known]
    errors += [f"--job {error.json_path.removeprefix('$.')}: {error.message}" for error in validate(given, schema)]
    if errors:
        raise RecipeError("\n".join(errors))
    return {name: about["default"] for name, about in known.items() if about.get("default") is not None} | given


def manifest(template: dict, variables: dict) -> dict:
    """The template's Job with its variables filled in, as a Prefect worker fills them."""
    from prefect.utilities.templating import apply_values
    job = apply_values(template["job_configuration"]["job_manifest"], variables)
    for key in ("parallelism", "completions"):  # a Job's, which Prefect's worker looks for in the pod; kubectl refuses
        job["spec"]["template"]["spec"].pop(key, None)
    return job


def in_image(file: Path) -> str:
    """A file's path in the image, which holds this checkout. Raises RecipeError when it lies elsewhere."""
    if not file.resolve().is_relative_to(ROOT):
        raise RecipeError(f"{file}: a Job has only what is in its image: put the file under {loading.CONFIGS}")
    return str(file.resolve().relative_to(ROOT))


def job_name(*parts: str) -> str:
    """A Job's name: lower case, digits and hyphens; Kubernetes adds five random characters and allows 63."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:56].rstrip("-")
