"""Prefect's Secrets: the keys of servers that a recipe names."""
import os
from contextlib import suppress

from prefect.blocks.system import Secret

from tasks.opd.recipe import slots
from tasks.opd.recipe.schema import Recipe


def lend_keys(recipe: Recipe) -> None:
    """Keys of servers that the environment lacks come from Prefect's Secrets: OPD_TEACHER_KEY from opd-teacher-key.

    Workers inherit them. Where there is no such Secret the server's maker says what is missing. Only names that begin
    with OPD_ are read: a recipe from elsewhere must not send another Secret to a server of its own.
    """
    for maker in (recipe.pair.teacher, *recipe.pair.others.values()):
        name = maker.params.get("key") if slots.entry_of(maker, "maker").remote else None
        if name and name.startswith("OPD_") and name not in os.environ:
            with suppress(ValueError):  # no such block
                os.environ[name] = Secret.load(name.lower().replace("_", "-")).get()
