"""A suite: recipes compared."""
from tasks.opd.recipe.schema import Model, Name, setting


class Suite(Model):
    """Recipes compared: every variant with every seed, on one pair, against a baseline."""
    name: Name = setting(..., "Name", "Name of the suite; the MLflow experiment.")
    variants: list[str] = setting(..., "Variants", "Names of files in configs/variants.", min_length=1)
    seeds: list[int] = setting([0, 1], "Seeds", "Each variant runs once a seed.", min_length=1)
    baseline: str = setting(..., "Baseline", "The variant others are compared with, or `start`: the untrained student.")
    benchmark: str = setting("", "Benchmark", "The benchmark compared; empty: the first.")
    set: list[str] = setting([], "Overrides", "key=value, for all recipes.")
    variant_set: dict[str, list[str]] = setting({}, "Variant overrides", "key=value by variant.")
