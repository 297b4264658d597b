"""A suite: recipes compared."""
from tasks.opd.recipe.schema import Model, Name, setting


class Assumptions(Model):
    """What is assumed of rewards before a suite runs, so as to say which difference it can detect."""
    accuracy: float = setting(0.5, "Accuracy", "Share of right answers; 0.5 is the worst case.", gt=0, lt=1)
    correlation: float = setting(0.3, "Correlation", "Between two students' answers to one prompt.", ge=0, lt=1)
    seed_sd: float = setting(0.03, "Seed deviation", "Standard deviation between seeds; 0.03 is three points.", ge=0)


class Suite(Model):
    """Recipes compared: every variant with every seed, on one pair, against a baseline."""
    name: Name = setting(..., "Name", "Name of the suite; the MLflow experiment.")
    variants: list[str] = setting(..., "Variants", "Names of files in configs/variants.", min_length=1)
    seeds: list[int] = setting([0, 1], "Seeds", "Each variant runs once a seed.", min_length=1)
    baseline: str = setting(..., "Baseline", "The variant others are compared with, or `start`: the untrained student.")
    benchmark: str = setting("", "Benchmark", "The benchmark compared; empty: the first.")
    set: list[str] = setting([], "Overrides", "key=value, for all recipes.")
    variant_set: dict[str, list[str]] = setting({}, "Variant overrides", "key=value by variant.")
    detect: float = setting(
        0.0, "Detect", "The difference that the suite looks for, 0.05 is five points; one that cannot detect it is "
        "refused. 0: none is stated.", ge=0, lt=1)
    assume: Assumptions = setting(Assumptions(), "Assumptions", "Of rewards, for what the suite can detect.")
