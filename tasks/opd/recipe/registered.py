"""The benchmarks of configs/benchmarks, whether they can be had without a network, and what is asked of them all."""
import contextlib
import os
from pathlib import Path

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import loading, slots
from tasks.opd.recipe.questions import Benchmark
from tasks.opd.recipe.schema import Recipe


def files() -> list[Path]:
    """The files of configs/benchmarks, each named as its benchmark."""
    return sorted((loading.CONFIGS / loading.FOLDERS["benchmarks"]).glob("*.yaml"))


def registered() -> dict[str, Benchmark]:
    """Every benchmark of configs/benchmarks, by name; without those that are unsound, which no run ends by."""
    found = {}
    for file in files():
        with contextlib.suppress(RecipeError, ValueError):
            found[file.stem] = Benchmark(**loading.chained(file).data)
    return found


def exposure_spec(recipe: Recipe) -> dict:
    """The spec of the stage `exposure`: the recipe's benchmarks with their limits, the registered ones at hand without,
    and the names of those that are not.
    """
    own = {one.name: asked_of(one, one.max_contaminated) for one in recipe.benchmarks}
    there = {name: asked_of(one, None) for name, one in registered().items() if name not in own and at_hand(one)}
    return {"benchmarks": own | there, "not_at_hand": sorted({file.stem for file in files()} - {*own, *there})}


def asked_of(benchmark: Benchmark, limit: float | None) -> dict:
    """A benchmark's questions as the stage takes them, and the limit above which it refuses."""
    return benchmark.model_dump(mode="json", include={"source", "first", "count"}) | {"max_contaminated": limit}


def at_hand(benchmark: Benchmark) -> bool:
    """Whether a benchmark's questions are on this machine: made by a function, in a file, or in the datasets cache."""
    params = benchmark.source.params
    if "path" in params:
        return Path(params["path"]).exists()
    return not slots.entry_of(benchmark.source, "source").remote or cached(params["dataset"])


def cached(dataset: str) -> bool:
    """Whether `datasets` keeps a dataset, under whatever spelling of its name, or it is a folder."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    folder = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets")
    kept = {plain(place.name) for place in folder.glob("*___*")}
    return Path(dataset).is_dir() or plain(dataset) in kept


def plain(name: str) -> str:
    """Letters and digits of a name, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))
