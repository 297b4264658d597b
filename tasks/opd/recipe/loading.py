"""Reads recipes and suites from YAML: composes files, applies `key=value` overrides, and reports all errors at once.

Later wins: the chain of `defaults:` < the variant file < the pair's file < files of prompts and benchmarks < the
command line. A string at `pair`, `prompts` or `benchmarks` names a file in configs/pairs, configs/prompts or
configs/benchmarks; which prompts and benchmarks is said by the command line, else by the variant file, else by the
pair's file. Lists are replaced; a mapping is merged, but for a slot, pair, source or benchmark under another `name`,
which replaces the earlier one wholesale, as a suite's `tune` and `validation` always do.
"""
import copy
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import slots, validation
from tasks.opd.recipe.layers import Layer, label_of, lines, merged, objections, override_label, tree
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.slots import Problem
from tasks.opd.recipe.suite import Suite, budgets_differ

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FOLDERS = {"pair": "pairs", "prompts": "prompts", "benchmarks": "benchmarks", "variant": "variants", "suite": "suites",
           "refresh": "refreshes"}
GROUPS = ("pair", "prompts", "benchmarks")
EMPTY = Layer({}, {})


class Reference(NamedTuple):
    """The files a group's string names."""
    names: list[str]
    source: str         # who says so
    near: Path          # the file relative to which names are looked up


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a variant file (a path, or a bare name in configs/variants), complete and checked.

    Raises: RecipeError with all that is wrong, one line each: file:line or override, key, value, what is allowed.
    """
    layer, errors = composed(path, overrides)
    return validation.validated(layer, resolved, errors)


def provenance(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Dotted key -> the `file:line` or override that set it, for every key not left at the schema's default."""
    return {".".join(key): source for key, source in composed(path, overrides)[0].sources.items() if key}


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Suite, list[tuple[str, int, Recipe]]]:
    """The suite and its cells (variant, seed, recipe). Overrides with a suite's key go to it, others to every recipe.

    Raises: RecipeError with all that is wrong in the suite, or in its recipes (each line once).
    """
    errors: list[str] = []
    suite, file, rest = opened_suite(path, overrides)
    cells = [cell for variant in suite.variants for cell in tried(errors, [], cells_of, suite, variant, file, rest)]
    errors += [f"{label_of(file)}: {problem}" for problem in budgets_differ([recipe for _, _, recipe in cells])]
    validation.refuse([], {}, errors)
    return suite, cells


def opened_suite(path: str | Path, overrides: Sequence[str]) -> tuple[Suite, Path, list[str]]:
    """The suite, its file, and the overrides that are for recipes."""
    mine = [o for o in overrides if re.split(r"[.=]", o)[0] in Suite.model_fields]
    return *read_suite(path, mine), [o for o in overrides if o not in mine]


def is_suite(name: str) -> bool:
    """Whether a path, or bare name, means a suite; a variant of the same name comes first."""
    try:
        return "variants" in chained(located("variant", name, Path())).data
    except RecipeError:
        return "/" not in name and (CONFIGS / FOLDERS["suite"] / f"{name}.yaml").is_file()


def read_suite(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Suite, Path]:
    """The suite and its file, without its recipes. Raises RecipeError with all that is wrong in the suite itself."""
    errors: list[str] = []
    file = located("suite", str(path), Path())
    written = chained(file)
    listed = written.data.get("variants") or []  # one that the command line leaves out may keep its variant_set
    layer = with_overrides(written, overrides, errors)
    layer.sources[()] = label_of(file)
    suite, problems = validation.parsed(Suite, layer.data, resolved)
    if suite and suite.baseline not in ("start", *suite.variants):
        message = f"unknown baseline; {slots.nearest(suite.baseline, ['start', *suite.variants])}"
        problems.append(Problem("baseline", message, suite.baseline))
    for variant in (v for v in (suite.variant_set if suite else {}) if v not in [*listed, *suite.variants]):
        message = f"not a variant of this suite; {slots.nearest(variant, suite.variants)}"
        problems.append(Problem(f"variant_set.{variant}", message))
    validation.refuse(problems, layer.sources, errors)
    return suite, file


def cells_of(suite: Suite, variant: str, file: Path, overrides: Sequence[str]) -> list[tuple[str, int, Recipe]]:
    """One variant of a suite with every seed. Raises RecipeError, also when it lacks the suite's benchmark."""
    recipe = load(located("variant", variant, file), [*suite.set, *suite.variant_set.get(variant, []), *overrides])
    known = [benchmark.name for benchmark in recipe.benchmarks]
    if suite.benchmark and suite.benchmark not in known:
        message = f"not a benchmark of variant {variant}; {slots.nearest(suite.benchmark, known)}"
        raise RecipeError(f"{label_of(file)}: {Problem('benchmark', message, suite.benchmark)}")
    return [(variant, seed, recipe.model_copy(update={"seed": seed})) for seed in suite.seeds]


def composed(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Layer, list[str]]:
    """All files and overrides of a recipe as one layer, and what was wrong with overrides and references."""
    errors: list[str] = []
    file = tried(errors, None, located, "variant", str(path), Path())
    layer, said = without_references(tried(errors, EMPTY, chained, file) if file else EMPTY, file)
    broken = bool(errors)
    chosen: dict[str, Reference] = {}
    for override in overrides:
        chosen |= without_references(tried(errors, EMPTY, read_override, override), Path())[1]
    if broken:
        raise RecipeError("\n".join(errors))
    layer.sources[()] = label_of(file)
    own = {group for group, value in layer.data.items()  # given in full
           if isinstance(value, list) or isinstance(value, dict) and "name" in value}
    pair = chosen.get("pair") or said.get("pair")
    for name in pair.names if pair else []:
        overlay, below = without_references(*group_file("pair", name, pair, errors))
        layer = merged(layer, overlay)
        said = {group: reference for group, reference in below.items() if group not in own} | said
    said |= chosen
    for group in (g for g in GROUPS[1:] if g in said):
        layer = merged(layer, group_layer(group, said[group], errors))
    layer = with_tiny(layer, [o for o in overrides if re.match(r"\s*pair\s*[.=]", o)], errors, frozenset(chosen))
    return with_overrides(layer, overrides, errors, skip=frozenset(chosen)), list(dict.fromkeys(errors))


def with_tiny(layer: Layer, overrides: Sequence[str], errors: list[str], skip: frozenset) -> Layer:
    """The layer without its `tiny` block, whose dotted settings go over it where the pair's models are tiny.

    Whether they are may be said by `overrides` of the pair.
    """
    own = layer.data.get("tiny") or {}
    rest = Layer({key: value for key, value in layer.data.items() if key != "tiny"},
                 {path: source for path, source in layer.sources.items() if path[:1] != ("tiny",)})
    pair = with_overrides(rest, overrides, errors, skip).data.get("pair")
    if not isinstance(own, dict):
        errors.append(f"{layer.sources[('tiny',)]}: tiny = {slots.shown(own)}: must map dotted keys to values")
    elif isinstance(pair, dict) and pair.get("tiny"):
        for key, value in own.items():
            source = layer.sources[("tiny", key)]
            rest = tried(errors, rest, merged, rest, nested(key.split("."), value, source), f"{source}: tiny: ")
    return rest


def nested(path: list[str], value: Any, source: str) -> Layer:
    """One setting as a layer."""
    data = value
    for part in reversed(path):
        data = {part: data}
    return Layer(data, {tuple(path): source})


def group_layer(group: str, reference: Reference, errors: list[str]) -> Layer:
    """The files named at `prompts` or `benchmarks`, as a layer of the recipe."""
    read = [group_file(group, name, reference, errors)[0] for name in reference.names]
    if group == "prompts":
        return Layer({group: read[0].data}, {(group, *key): source for key, source in read[0].sources.items()})
    sources = {(group, str(i), *key): source for i, one in enumerate(read) for key, source in one.sources.items()}
    return Layer({group: [one.data for one in read]}, {(group,): reference.source, **sources})


def group_file(group: str, name: str, reference: Reference, errors: list[str]) -> tuple[Layer, Path]:
    """A file of a group as a layer, and its path; when it cannot be read, an empty layer and the reason in `errors`."""
    try:
        file = located(group, name, reference.near, f"{reference.source}: {group}")
        return chained(file), file
    except RecipeError as error:
        errors += str(error).splitlines()
        return EMPTY, Path()


def without_references(layer: Layer, file: Path) -> tuple[Layer, dict[str, Reference]]:
    """The layer without the strings that name files of a group, and those."""
    references = {}
    for group in GROUPS:
        value = layer.data.get(group)
        listed = value.split(",") if isinstance(value, str) else value
        if listed and isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            references[group] = Reference([name.strip() for name in listed], layer.sources[(group,)], file)
    data = {key: value for key, value in layer.data.items() if key not in references}
    return Layer(data, layer.sources), references


def located(kind: str, name: str, near: Path, said: str = "") -> Path:
    """The file a path or bare name means; names are looked up in the configs folder around `near`, then in ours."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        tries = [near.parent / name, Path(name)]
    else:
        tries = [folder / FOLDERS[kind] / f"{name}.yaml" for folder in (near.absolute().parent.parent, CONFIGS)]
    for file in tries:
        if file.is_file():
            return file
    known = sorted({found.stem for folder in {t.parent for t in tries} for found in folder.glob("*.yaml")})
    raise RecipeError(f"{said or kind} = {slots.shown(name)}: no such file; {slots.nearest(Path(name).stem, known)}")


def chained(file: Path, above: tuple[Path, ...] = ()) -> Layer:
    """A file over the files its `defaults:` names (relative to it), in order."""
    if file.resolve() in above:
        raise RecipeError(f"{label_of(above[-1])}: defaults: {label_of(file)} leads back to itself")
    layer, errors, result = read_yaml(file), [], EMPTY
    listed = layer.data.get("defaults") or []
    for name in [listed] if isinstance(listed, str) else listed:
        below = file.parent / str(name)
        if below.is_file():
            result = merged(result, tried(errors, EMPTY, chained, below, (*above, file.resolve())))
        else:
            said = layer.sources[("defaults",)]
            errors.append(f"{said}: defaults = {slots.shown(name)}: no such file beside {label_of(file)}")
    if errors:
        raise RecipeError("\n".join(errors))
    data = {key: value for key, value in layer.data.items() if key != "defaults"}
    return merged(result, Layer(data, {key: s for key, s in layer.sources.items() if key[0] != "defaults"}))


def with_overrides(layer: Layer, overrides: Sequence[str], errors: list[str], skip: frozenset = frozenset()) -> Layer:
    """The layer under `key=value` overrides, in order; those that name files of the groups in `skip` are left out."""
    for override in overrides:
        top = tried(errors, EMPTY, read_override, override)
        if not any((group,) in top.sources and without_references(top, Path())[1] for group in skip):
            layer = tried(errors, layer, merged, layer, top, f"{override_label(override)}: ")
    return layer


def tried(errors: list[str], default: Any, function: Callable, *args: Any) -> Any:
    """The function's result; or the default, and the lines of its RecipeError go to the errors."""
    try:
        return function(*args)
    except RecipeError as error:
        errors += str(error).splitlines()
        return default


def read_yaml(file: Path) -> Layer:
    """A YAML mapping. Raises RecipeError with all that is refused in it, each with file:line."""
    label = label_of(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{label}: cannot be read: {error}") from error
    read = layer_of(text, label)
    return Layer(copy.deepcopy(read.data), dict(read.sources))


@functools.lru_cache(maxsize=256)
def layer_of(text: str, label: str) -> Layer:
    """The text of a YAML file as a layer; kept, for base.yaml lies under every variant."""
    from omegaconf import OmegaConf
    try:
        node = tree(text)
    except ValueError as error:
        raise RecipeError("{}:{}: {}".format(label, *error.args)) from error
    if node is None:
        return EMPTY
    if node.id != "mapping":
        raise RecipeError(f"{label}:1: must be a mapping of keys and values")
    refused = [f"{label}:{line}: {message}" for line, message in objections(node, "")]
    if refused:
        raise RecipeError("\n".join(refused))
    data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return Layer(data, {path: f"{label}:{line}" for path, line in lines(node)})


def read_override(override: str) -> Layer:
    """`terms.0.divergence.beta=0.3`; numbers address entries of lists. Raises RecipeError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    label, (key, sign, value) = override_label(override), override.partition("=")
    key = re.sub(r"\[(\d+)\]", r".\1", key.strip())  # terms[0] is terms.0
    path = tuple(key.split("."))
    if not sign or not all(path):
        raise RecipeError(f"{label}: must be key=value, for example train.learning_rate=1e-5")
    try:
        node = tree(value)
        refused = [f"{label}: {message}" for _, message in objections(node, key)] if node else []
        if refused:
            raise RecipeError("\n".join(refused))
        data = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]), resolve=False)
    except (ValueError, OmegaConfBaseException) as error:
        raise RecipeError(f"{label}: {str(error.args[-1]).splitlines()[0]}") from error
    return Layer(data, {path: label})


def resolved(data: dict) -> dict:
    """Plain data with its `${key}` filled in. Raises RecipeError naming the key that cannot be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    try:
        return OmegaConf.to_container(OmegaConf.create(data), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
