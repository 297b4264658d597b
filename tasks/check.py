"""The first task of a triggered run: what a form asks for is loaded, and so checked, before anything is made."""
from collections.abc import Callable

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.opd.recipe.schema import Recipe
from tasks.stage import log_line


@task(cache_policy=NO_CACHE, task_run_name="check")
def check(load: Callable[[], list[Recipe]]) -> tuple[list[Recipe], str]:
    """The recipes that `load` loads, and the first of them as YAML, which is logged too.

    Raises: RecipeError with all that is wrong.
    """
    recipes = load()
    text = yaml.safe_dump(recipes[0].model_dump(mode="json"), sort_keys=False)
    log_line(f"the recipe as it is run:\n{text}", to_person=False)
    return recipes, text
