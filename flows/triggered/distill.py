"""A variant as it is triggered from its form: one seed in this run itself, of several each as a run inside it."""
from prefect import flow, tags
from prefect.runtime import flow_run
from prefect.states import State

from flows import tables
from flows.distill import distill as distill_recipe
from flows.forms import verdicts
from flows.forms.values import OWN, overrides_of, recipes_of
from flows.pools import own_pool
from tasks.opd.evaluation.comparison import START
from tasks.opd.evaluation.comparison_tables import to_markdown
from tasks.opd.recipe.schema import Recipe


def run_name() -> str:
    """`gkd-seed0`, `gkd-seeds0,1`, and `-smoke` behind it where it is one."""
    form = {"seeds": "0", "smoke": False} | flow_run.parameters
    seeds = "".join(form["seeds"].split())
    return f"{form['variant']}-seed{'s' if ',' in seeds else ''}{seeds}{'-smoke' if form['smoke'] else ''}"


@flow(name="distill", flow_run_name=run_name, persist_result=False)
def distill(variant: str, pair: str = OWN, prompts: str = OWN, benchmarks: str = OWN, seeds: str = "0", rounds: int = 0,
            learning_rate: float = 0, trained_tokens: int = 0, engine: str = OWN, smoke: bool = False, note: str = "",
            overrides: list[str] = ()) -> State:
    """Check the form, distil, and end with the verdict."""
    given = overrides_of(locals())
    return verdicts.ended(lambda: recipes_of(variant, given, seeds), distilled, note)


def distilled(recipes: list[Recipe]) -> verdicts.Ending:
    """The verdict over the seeds, with tables and MLflow's pages. Raises the error of a seed that failed."""
    if not recipes[1:]:
        result = distill_recipe.fn(recipes[0])
        return verdicts.of_variant(recipes[0].name, tables.of_run(result)), [
            f"[MLflow]({result['mlflow_page']})", tables.markdown_of_run(result)]
    done, failed = {}, {}
    with own_pool(recipes[0]):
        for recipe in recipes:
            with_seed(recipe, done, failed)
    name, ends = recipes[0].name, next(iter(done.values()))["end"] if done else {}
    found = {end: tables.table_of(done, {(name, seed): e for seed, e in failed.items()}, end, START) for end in ends}
    verdict = verdicts.of_seeds(name, found, failed)
    pages = [f"[MLflow, seed {seed}]({result['mlflow_page']})" for (_, seed), result in done.items()]
    return verdict, [" ".join(pages), *(f"### {end}\n\n{to_markdown(table)}" for end, table in found.items())]


def with_seed(recipe: Recipe, done: dict, failed: dict) -> None:
    """Distil with one seed, as a run inside this one; the other seeds do not depend on how it ends."""
    try:
        with tags(f"seed:{recipe.seed}"):
            done[recipe.name, recipe.seed] = distill_recipe(recipe)
    except Exception as error:  # it is shown
        failed[recipe.seed] = error
