"""Commands that read recipes, and load no model."""
import argparse

from tasks.opd.core.errors import RecipeError
from tasks.opd.evaluation import power
from tasks.opd.recipe import catalogue, loading, slots
from tasks.opd.recipe.checks import recipes
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.tuning import load_trials


def check(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load a recipe and say what it needs, or a suite and what it can detect.

    Raises: RecipeError with all that is wrong.
    """
    if loading.is_suite(arguments.recipe):
        return check_suite(arguments)
    recipe = loading.load(arguments.recipe, arguments.overrides)
    report = recipes.report(recipe, loading.provenance(arguments.recipe, arguments.overrides))
    if report["problems"]:
        raise RecipeError("\n".join(report["problems"]))
    needs = [f"{model}: {', '.join(column for column, amount in want.items() if amount)}"
             for model, want in report["needs"].items()]
    files = ", ".join(report["files"])
    summary = f"{recipe.name} is sound; teachers give {'; '.join(needs) or 'nothing'}; read {files}"
    return report, "\n".join([summary, *report["changes"], *report["notes"]])


def check_suite(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Check a suite's recipes, and that it can detect what it looks for."""
    plan, cells = loading.load_suite(arguments.recipe, arguments.overrides)
    found = {variant: recipes.report(recipe, {})["problems"] for variant, seed, recipe in cells if seed == cells[0][1]}
    if problems := [f"{variant}: {problem}" for variant, said in found.items() for problem in said]:
        raise RecipeError("\n".join(problems))
    trials = load_trials(arguments.recipe, arguments.overrides)
    power.refuse_undetectable(plan, cells)
    said, before = power.described(plan, cells), f", {len(trials)} trials before them" if trials else ""
    return {"suite": plan.name, "cells": len(cells), "trials": len(trials), "problems": [], "described": said,
            "detectable": power.detectable_by(plan, power.benchmark_of(plan, cells))}, (
        f"{plan.name} is sound: {len(cells)} cells ({', '.join(found)}){before}\n{said}")


def variants(arguments: argparse.Namespace) -> tuple[dict, str]:
    """All variants that come with opdlab, with the sizes their papers have."""
    base, *found = (loading.load(file, ["pair.tiny=false"]) for file in
                      [loading.CONFIGS / "base.yaml", *sorted((loading.CONFIGS / "variants").glob("*.yaml"))])
    found = [described(recipe, base) for recipe in found]
    return {"variants": found}, catalogue.markdown(found) if arguments.markdown else catalogue.text(found)


def described(recipe: Recipe, base: Recipe) -> dict:
    """A variant as `opd variants` lists it; models, prompts and benchmarks are not the variant's."""
    data = recipe.model_dump(mode="json")
    chosen = {".".join(map(str, path)): {"name": value["name"], **value["params"]} if value["params"] else value["name"]
              for path, _, value in slots.found(data) if path[0] not in ("pair", "prompts", "benchmarks")}
    return {"name": recipe.name, **data["about"], "slots": chosen,
            "differs": catalogue.differs(data, base.model_dump(mode="json"))}
