"""Layers of settings: plain data with who set each key; what is refused in YAML text; how one layer goes over another.

Refused is what hides errors: duplicate keys, aliases, tags of other types, NaN, and interpolations other than `${key}`.
"""
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import slots

if TYPE_CHECKING:
    import yaml

PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")}
NAMED = {("pair",), ("prompts",), ("benchmarks", "*")}  # replaced wholesale under another name, as slots are
WHOLE = ("tune", "validation")  # a suite's: given as a mapping it is all there is, an empty one nothing
REFERENCE = re.compile(r"\$\{[A-Za-z0-9_.\[\]]+\}")  # a key of the recipe; resolvers (oc.env and the like) are off


class Layer(NamedTuple):
    """Plain nested data and who set each key."""
    data: dict[str, Any]
    sources: dict[tuple[str, ...], str]  # path of keys and indices -> "file:line" or `override_label`


def label_of(file: Path) -> str:
    """A file as messages name it: relative to the working directory where it lies under it."""
    file, here = file.resolve(), Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def override_label(override: str) -> str:
    """An override as messages name it; without its value where that may be a secret."""
    key = re.match(r"\s*[^\s=:]*", override)[0]
    value = override[len(key):].lstrip(" =:")
    secret = value and (slots.is_secret(key.strip(), value) or slots.masked(value) != value)
    return f"override {f'{key}={slots.HIDDEN}' if secret else override!r}"


def tree(text: str) -> "yaml.Node | None":
    """The syntax tree of a YAML text without aliases. Raises ValueError(line, what is wrong)."""
    import yaml
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                message = f"aliases (*{event.anchor}) are not allowed; write the value out"
                raise ValueError(event.start_mark.line + 1, message)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(mark.line + 1 if mark else 1, getattr(error, "problem", None) or str(error)) from error


def objections(node: "yaml.Node", key: str) -> list[tuple[int, str]]:
    """What is refused in a tree: (line, message)."""
    line, found = node.start_mark.line + 1, []
    if node.tag not in PLAIN:
        found.append((line, f"{key}: tag {node.tag} is not allowed; only plain values are"))
    if node.id == "scalar":
        value = "" if slots.is_secret(key, node.value) else f" = {slots.masked(node.value)}"
        return found + [(line, f"{key}{value}: {message}") for message in scalar_objections(node)]
    if node.id == "sequence":
        return found + [o for i, child in enumerate(node.value) for o in objections(child, f"{key}.{i}".strip("."))]
    first: dict[str, int] = {}
    for name, child in node.value:
        here, at = f"{key}.{name.value}".strip("."), name.start_mark.line + 1
        if name.value in first:
            found.append((at, f"{here}: duplicate key; first given in line {first[name.value]}"))
        first.setdefault(name.value, at)
        found += objections(child, here)
    return found


def scalar_objections(node: "yaml.ScalarNode") -> list[str]:
    """What is refused in a value."""
    if re.fullmatch(r"[-+]?\.?(inf|infinity|nan)", node.value, re.IGNORECASE) and node.style is None:
        return ["must be a finite number"]
    if "${" in REFERENCE.sub("", node.value):
        return ["only ${key} references are allowed"]
    return []


def lines(node: "yaml.Node", path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], int]]:
    """Every key and entry of a tree with its line."""
    if node.id == "mapping":
        children = [(name.value, child, name.start_mark.line + 1) for name, child in node.value]
    elif node.id == "sequence":
        children = [(str(i), child, child.start_mark.line + 1) for i, child in enumerate(node.value)]
    else:
        return []
    return [found for name, child, line in children
            for found in [((*path, name), line), *lines(child, (*path, name))]]


def merged(below: Layer, above: Layer, label: str = "") -> Layer:
    """`above` over `below`; sources of what is replaced are forgotten. Raises RecipeError for an entry a list lacks.

    A mapping goes into the one below it, but one of WHOLE replaces it where `above` gives the key itself, as
    `validation={first: 5}` does and `validation.first=5` does not.
    """
    replaced = {key for key in WHOLE if (key,) in above.sources}
    sources = {path: source for path, source in below.sources.items() if not replaced.intersection(path[:1])}
    kept = {key: value for key, value in below.data.items() if key not in replaced}
    try:
        data = merge(kept, above.data, (), sources)
    except IndexError as error:
        raise RecipeError(f"{label}{error}") from error
    return Layer(data, sources | above.sources)


def merge(old: Any, new: Any, path: tuple[str, ...], sources: dict) -> Any:
    """`new` over `old` at a path; a mapping whose keys are all numbers addresses entries of a list."""
    if isinstance(old, list) and isinstance(new, dict) and new and all(str(key).isdigit() for key in new):
        return merge_entries(old, new, path, sources)
    if isinstance(old, str) and isinstance(new, dict) and slots.kind_of(path):
        old = {"name": old}
    if isinstance(old, dict) and isinstance(new, dict) and not renamed(old, new, path):
        common = {key: merge(old[key], value, (*path, str(key)), sources) for key, value in new.items() if key in old}
        return {**old, **new, **common}
    for key in [key for key in sources if key[:len(path)] == path]:
        del sources[key]
    return new


def merge_entries(old: list, new: dict, path: tuple[str, ...], sources: dict) -> list:
    result = list(old)
    for key, value in new.items():
        if int(key) >= len(old):
            raise IndexError(f"{'.'.join(path)}.{key}: no such entry; {'.'.join(path)} has {len(old)}, counted from 0")
        result[int(key)] = merge(old[int(key)], value, (*path, str(key)), sources)
    return result


def renamed(old: dict, new: dict, path: tuple[str, ...]) -> bool:
    """Whether a slot, pair, source or benchmark is replaced by another, of which nothing of the first is kept."""
    pattern = tuple("*" if part.isdigit() else part for part in path)
    replaceable = slots.kind_of(path) is not None or pattern in NAMED
    return replaceable and "name" in new and new["name"] != old.get("name")
