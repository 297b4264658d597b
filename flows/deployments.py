"""Every variant, suite, evaluation and refresh as a deployment with a form, run from Prefect's pages: flow/name."""
from typing import Any

from flows.forms import fields, refreshed, texts
from flows.forms.registration import Deployed, register
from tasks.opd.recipe import loading
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.suite import Suite


def deploy(pool: str = "opd") -> dict[str, Any]:
    """Make the deployments on the server of PREFECT_API_URL those of the files in configs.

    Returns what `register` does, and `refused`: flow/name -> why its file cannot be loaded; its deployment stays as is.
    """
    wanted, refused = [], {}
    for table in (variants, suites, evaluations, refreshed.refreshes, refreshed.moves):
        some, wrong = table()
        wanted, refused = wanted + some, refused | wrong
    return register(wanted, pool, frozenset(refused)) | {"refused": refused}


def variants() -> tuple[list[Deployed], dict[str, str]]:
    """`distill/<variant>` for every file in configs/variants."""
    base, families = loading.load(loading.CONFIGS / "base.yaml"), texts.families()
    loaded, refused = texts.by_name("variants", loading.load)
    return [Deployed(
        flow="distill", name=name, entrypoint="flows.triggered.distill.distill", parameters={"variant": name},
        form=fields.schema_of(fields.recipe_fields(recipe, [recipe.seed])),
        tags=(f"variant:{name}", f"family:{families.get(name, 'other')}"), description=texts.variant_text(recipe, base),
    ) for name, recipe in loaded.items()], {f"distill/{name}": why for name, why in refused.items()}


def suites() -> tuple[list[Deployed], dict[str, str]]:
    """`compare/<suite>` for every file in configs/suites; of its recipes only the first is loaded."""
    loaded, refused = texts.by_name("suites", first_cell)
    return [Deployed(
        flow="compare", name=name, entrypoint="flows.triggered.compare.compare", parameters={"suite": name},
        form=fields.schema_of(fields.recipe_fields(recipe, suite.seeds)), tags=(f"suite:{suite.name}",),
        description=texts.suite_text(suite, name),
    ) for name, (suite, recipe) in loaded.items()], {f"compare/{name}": why for name, why in refused.items()}


def first_cell(name: str) -> tuple[Suite, Recipe]:
    """A suite and the recipe of its first cell."""
    suite, file = loading.read_suite(name)
    return suite, loading.cells_of(suite, suite.variants[0], file, [])[0][2]


def evaluations() -> tuple[list[Deployed], dict[str, str]]:
    """`evaluate/model`."""
    return [Deployed(
        flow="evaluate", name="model", entrypoint="flows.triggered.evaluate.evaluate",
        form=fields.schema_of(fields.evaluation_fields()), description=texts.EVALUATION_TEXT)], {}
