"""Which slot of a recipe is served by which module and table, and whether a choice and its parameters fit. No torch.

A slot's functions are read with `ast`: a parameter of the slot is keyword-only, and its annotation says its type and
bounds (`Annotated[float, Field(gt=0, lt=1)]`, `Literal["both", "tail"]`). So a recipe is checked in the first second,
and only the stage that runs a slot imports its module. A table is read likewise: `NAME: Entry(function, facts)`.
"""
import ast
import builtins
import difflib
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe.schema import Controller, Slot, Writer

ROOT = Path(__file__).resolve().parents[1]  # where the slots' modules lie
SECRETS = {"key", "api_key", "token", "secret", "password", "urls", "url"}  # what stands there is never shown
NEAR = {"tokenizer", "scores", "set"}   # names of ours that look like one of those
NUMBER = re.compile(r"\s*([-+]?[\d.]+(e[-+]?\d+)?|true|false|null|none)\s*", re.IGNORECASE)
HIDDEN = "***"
MANY = 24                               # more names than this are not all listed in a message
UNSET = object()                        # a problem without a value; a parameter without a default

TABLES = {  # kind of slot -> (module in tasks/opd, its table)
    "writer": ("rollouts.writers", "WRITERS"), "filter": ("rollouts.filters", "FILTERS"),
    "refiner": ("rollouts.refiners", "REFINERS"),
    "context": ("scoring.contexts", "CONTEXTS"), "refresh": ("scoring.self_teachers", "REFRESHES"),
    "rows": ("objective.rows", "ROWS"),
    "target": ("objective.targets", "TARGETS"), "support": ("objective.supports", "SUPPORTS"),
    "weight": ("objective.weights", "WEIGHTS"),
    "divergence": ("objective.divergences", "DIVERGENCES"), "advantage": ("objective.advantages", "ADVANTAGES"),
    "estimator": ("objective.estimators", "ESTIMATORS"), "reduction": ("objective.reductions", "REDUCTIONS"),
    "grader": ("data.graders", "GRADERS"), "source": ("data.sources", "SOURCES"), "maker": ("makers.models", "MAKERS"),
    "controller": ("recipe.controllers", "CONTROLLERS"),
}
SLOTS = {  # where a recipe has slots; * stands for any index or name
    "pair.student": "maker", "pair.teacher": "maker", "pair.others.*": "maker",
    "prompts.source": "source", "prompts.grader": "grader",
    "extra_prompts.*.source": "source", "extra_prompts.*.grader": "grader",
    "benchmarks.*.source": "source", "benchmarks.*.grader": "grader",
    "rollout.writers.*": "writer", "rollout.filters.*": "filter", "refine.*": "refiner",
    "teacher.refresh": "refresh", "teacher.context": "context",
    "terms.*.rows": "rows", "terms.*.target": "target", "terms.*.support": "support", "terms.*.weights.*": "weight",
    "terms.*.divergence": "divergence", "terms.*.advantage": "advantage", "terms.*.estimator": "estimator",
    "controllers.*": "controller", "terms.*.reduction": "reduction",
}
MODELS = {"writer": Writer, "controller": Controller}  # kinds of slot with fields of their own
PLAIN = ("int", "float", "str", "bool", "list", "dict", "tuple", "set", "frozenset")
NAMESPACE = {**{name: getattr(builtins, name) for name in PLAIN}, "Annotated": Annotated, "Field": Field,
             "Literal": Literal, "Any": Any, "Path": Path, "__builtins__": {}}


class Problem(NamedTuple):
    """Something wrong in a recipe: where, what, and (when there is one) the value given."""
    key: str
    message: str
    value: Any = UNSET

    def __str__(self) -> str:
        hidden = self.value is UNSET or is_secret(self.key, self.value)
        value = "" if hidden else f" = {shown(self.value)}"
        return f"{self.key}{value}: {self.message}" if self.key else self.message


class Parameter(NamedTuple):
    """A keyword-only parameter of a slot's function."""
    annotation: Any
    default: Any  # UNSET when it must be given


def is_secret(key: str, value: Any) -> bool:
    """Whether a value may be a secret by its key: a name of SECRETS, or one near it (mistyped), but for numbers."""
    names = str(key).lower().split(".")
    words = [word for name in names for word in re.split(r"[\W_]+", name) if word not in NEAR]
    near = any(difflib.get_close_matches(word, SECRETS, n=1, cutoff=0.66) for word in words)
    return not SECRETS.isdisjoint(names) or near and not NUMBER.fullmatch(str(value))


def masked(value: Any) -> Any:
    """Plain data with HIDDEN for what may be a secret: by its key, or a text with such keys, a url's user or query."""
    if isinstance(value, dict):
        return {key: HIDDEN if is_secret(key, inner) else masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner) for inner in value]
    if not isinstance(value, str):
        return value
    named = re.findall(r"([\w.]+)['\"]?\s*[:=](?=([^,}\]]*))", value)  # mappings in mappings too
    return HIDDEN if re.search(r"://\S*[@?]", value) or any(is_secret(*pair) for pair in named) else value


def shown(value: Any) -> str:
    """A value as it would stand in YAML, shortened and without secrets."""
    text = json.dumps(masked(value), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(name: str, known: list[str]) -> str:
    """`did you mean jsd? known: ...`, or only what is known."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    near = known if len(known) <= MANY else difflib.get_close_matches(str(name), known, n=5, cutoff=0.4)
    listed = "known: " + ", ".join(near) if near else "there are none" if not known else f"{len(known)} are known"
    listed += f" and {len(known) - len(near)} more" if near and len(near) < len(known) else ""
    return f"did you mean {close[0]}? {listed}" if close else listed


def kind_of(path: tuple) -> str | None:
    """The kind of slot at a path of keys and indices, or None."""
    for pattern, kind in SLOTS.items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(p == "*" or p == str(q) for p, q in zip(parts, path)):
            return kind
    return None


def found(data: Any, path: tuple = ()) -> Iterator[tuple[tuple, str, Any]]:
    """Every slot of a recipe given as plain data: (path, kind, value); absent ones and None are skipped."""
    kind = kind_of(path)
    if kind and data is not None:
        yield path, kind, data
        return
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from found(value, (*path, key))


def check(slot: Slot, kind: str) -> tuple[dict, list[Problem]]:
    """The slot's parameters with all defaults filled in, and what is wrong; keys are relative to the slot."""
    known = names(kind)
    if slot.name not in known:
        return {}, [Problem("name", f"unknown {kind}; {nearest(slot.name, known)}", slot.name)]
    parameters, params, problems = signature(kind, slot.name), {}, []
    for key, value in slot.params.items():
        if key not in parameters:
            problems.append(Problem(key, f"unknown parameter of {slot.name}; {nearest(key, list(parameters))}", value))
    for key, parameter in parameters.items():
        if key in slot.params:
            params[key], wrong = fit(parameter.annotation, slot.params[key])
            problems += [Problem(".".join([key, *where]), message, value) for where, message, value in wrong]
        elif parameter.default is UNSET:
            problems.append(Problem(key, f"missing; {slot.name} needs it"))
        else:
            params[key] = parameter.default
    return params, problems


def bind(slot: Slot, kind: str) -> dict:
    """The slot's parameters, complete. Raises RecipeError listing all that is wrong with its name and parameters."""
    params, problems = check(slot, kind)
    if problems:
        raise RecipeError("\n".join(str(problem) for problem in problems))
    return params


def check_all(data: dict) -> tuple[dict[tuple, Slot], list[Problem]]:
    """All slots of a recipe given as plain data, completed, by path; and what is wrong with them."""
    slots, problems = {}, []
    for path, kind, value in found(data):
        try:
            slot = MODELS.get(kind, Slot).model_validate(value)
        except ValidationError:
            continue  # the schema reports it
        params, wrong = check(slot, kind)
        slots[path] = slot.model_copy(update={"params": params})
        prefix = ".".join(map(str, path))
        problems += [Problem(prefix if p.key == "name" else f"{prefix}.{p.key}", p.message, p.value) for p in wrong]
    return slots, problems


def fit(annotation: Any, value: Any) -> tuple[Any, list[tuple[list[str], str, Any]]]:
    """A value held against an annotation, strictly: (value, [(where inside it, what is allowed, value there)])."""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
        return adapter.dump_python(adapter.validate_json(json.dumps(value)), mode="json"), []
    except ValidationError as error:
        return None, [([str(part) for part in e["loc"]], allowed(e["msg"]), e["input"]) for e in error.errors()]


def allowed(message: str) -> str:
    """Pydantic's message in our words."""
    said = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{said}; quote it, for YAML reads it as something else" if said.endswith("be a valid string") else said


def names(kind: str) -> list[str]:
    """The entries of a kind's table."""
    return list(functions(kind))


def file_of(kind: str) -> Path:
    """The source file of a kind's module, or of its package."""
    return module_file(TABLES[kind][0])


def module_file(module: str) -> Path:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.exists() else path.with_suffix("") / "__init__.py"


def signature(kind: str, name: str) -> dict[str, Parameter]:
    """The keyword-only parameters of an entry: type, bounds and default, without importing its module."""
    file, function_name = functions(kind)[name]
    file, function = definition(file, function_name)
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults)
    return {arg.arg: Parameter(evaluated(file, arg.annotation) if arg.annotation else Any,
                               UNSET if default is None else evaluated(file, default)) for arg, default in pairs}


def entry_of(slot: Slot, kind: str) -> Entry:
    """The slot's entry under its parameters, without importing its module: the function is None, facts are values.

    An unknown name has an entry without facts, and facts that depend on parameters which are wrong are left at their
    defaults: both are reported elsewhere.
    """
    call = calls(kind).get(slot.name)
    if call is None:
        return Entry(None)
    facts = {fact.arg: evaluated(file_of(kind), fact.value) for fact in call.keywords}
    depending = {name for name, fact in facts.items() if callable(fact)}
    params, problems = check(slot, kind) if depending else ({}, [])
    return Entry(None, **{name: facts[name] for name in facts if not (problems and name in depending)}).at(params)


def functions(kind: str) -> dict[str, tuple[Path, str]]:
    """Name of each entry of a kind's table -> (file of the table, name of the function)."""
    return {name: (file_of(kind), call.args[0].id) for name, call in calls(kind).items()}


def calls(kind: str) -> dict[str, ast.Call]:
    """Name of each entry of a kind's table -> the syntax tree of its `Entry(function, facts)`."""
    file, table = file_of(kind), TABLES[kind][1]
    value = assignments(file).get(table)
    entries = value.values if isinstance(value, ast.Dict) else [None]
    assert all(isinstance(entry, ast.Call) and ast.unparse(entry.func) == "Entry" for entry in entries), \
        f"{file} must hold {table} as a dict of names and entries: Entry(function, facts)"
    return {key.value: call for key, call in zip(value.keys, entries)}


def definition(file: Path, name: str) -> tuple[Path, ast.FunctionDef]:
    """The function of that name, followed through imports from tasks.opd: (file, syntax tree)."""
    for node in parsed(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tasks.opd."):
            for alias in (a for a in node.names if (a.asname or a.name) == name):
                return definition(module_file(node.module.removeprefix("tasks.opd.")), alias.name)
    raise AssertionError(f"{file} has no function {name}")


def evaluated(file: Path, node: ast.expr) -> Any:
    """An annotation, default or fact, evaluated over a few types and the module's own constants, and nothing else."""
    code, used = compiled(node, str(file))
    own = {name: evaluated(file, assignments(file)[name]) for name in used}
    return eval(code, {**NAMESPACE, **own})  # noqa: S307  our own source


@functools.lru_cache(maxsize=4096)
def compiled(node: ast.expr, file: str) -> tuple[CodeType, frozenset[str]]:
    """An expression's code, and the module's own constants that it reads."""
    given = {arg.arg for n in ast.walk(node) if isinstance(n, ast.Lambda) for arg in n.args.args}
    used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - set(NAMESPACE) - given
    return compile(ast.Expression(node), file, "eval"), frozenset(used)


def assignments(file: Path) -> dict[str, ast.expr]:
    """The module-level `NAME = expression` of a file."""
    return assigned_in(parsed(file))


@functools.lru_cache(maxsize=256)
def assigned_in(tree: ast.Module) -> dict[str, ast.expr]:
    body = tree.body
    plain = {node.targets[0].id: node.value for node in body
             if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    return plain | {node.target.id: node.value for node in body
                    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value}


def parsed(file: Path) -> ast.Module:
    return parsed_at(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def parsed_at(file: Path, modified: int) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))
