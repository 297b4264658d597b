"""Make a recipe's models and prompts, so that what follows starts at once."""
from prefect import flow

from flows.pools import pool_for
from tasks.bootstrap import make_models, models_needed
from tasks.context import check_context
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.opd.store.run_records import recorded
from tasks.prompts import make_prompts, training_prompts


@flow(flow_run_name="{recipe.pair.name}", persist_result=False)
def bootstrap(recipe: Recipe) -> dict[str, dict[str, Artifact]]:
    """The models that the recipe's rounds read, its training prompts and those of its benchmarks."""
    with pool_for(recipe) as pool, recorded(f"bootstrap-{recipe.pair.name}", recipe=recipe.model_dump(mode="json")):
        models = make_models(recipe.pair, models_needed(recipe), pool)
        check_context(recipe, models, pool)
        student, ask = models["student"], {"context_tokens": recipe.pair.context_tokens}
        prompts = training_prompts(recipe, student, pool)
        held_out = {benchmark.name: make_prompts(benchmark, student, pool, **ask, use="test", train=prompts)
                    for benchmark in recipe.benchmarks}
        return {"models": models, "prompts": {"train": prompts}, "benchmarks": held_out}
