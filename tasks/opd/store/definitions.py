"""A module's source taken apart: its top-level definitions, and what each of them reads. Nothing is imported for it.

A unit is a top-level function, class or constant; of a class each method, and of a keyword-only dataclass each field
with a default, is a unit of its own, as is each entry of a dict of constants. Comments, docstrings and the words of a
`raise` or an `assert` are no part of a unit. Names are resolved by scope, as Python does; class scopes are left out,
so that a name which also stands in a class body is taken for the module's.
"""
import ast
import functools
import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from tasks.opd.store.references import Imported, Reads, imported_names, modules_run, read

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NEVER_RUN = ("TYPE_CHECKING", "__main__")  # an `if` at the top that asks for one of these does not run on import
IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of code: the hash of its syntax tree, and what it reads."""
    digest: str
    reads: Reads


@dataclass(kw_only=True)
class Source:
    """A module in units. A key is `name`, `Class.part` or `TABLE[entry]`."""
    name: str
    units: dict[str, Unit] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> key of a part -> field, method or entry
    imports: dict[str, tuple[Imported, ...]] = field(default_factory=dict)  # of the module's scope, by local name
    effects: list[Unit] = field(default_factory=list)   # other statements, which run on import
    reached: set[str] = field(default_factory=set)      # modules that importing this one imports


def source_file(module: str) -> Path | None:
    """The .py file of a module, found without importing it or its parents; None when there is none."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if not rest and spec.origin and spec.origin.endswith(".py") else None
    for location in spec.submodule_search_locations:
        stem = Path(location).joinpath(*rest)
        for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if file.is_file():
                return file
    return None


@functools.cache
def source_of(module: str) -> Source | None:
    """A module's source in units, read once a process, whose code does not change either; None without a .py file."""
    file = source_file(module)
    if file is None:
        return None
    return taken_apart(file.read_text(encoding="utf-8"), module, is_package=file.name == "__init__.py")


def taken_apart(text: str, module: str, *, is_package: bool = False) -> Source:
    """The text of a module in units."""
    package = module if is_package else module.rpartition(".")[0]
    source, statements = Source(name=module), {}
    for node in plain(ast.parse(text, filename=module)).body:
        if names := names_defined(node):
            for name in names:
                statements.setdefault(name, []).append(node)
            continue
        runs = not (isinstance(node, ast.If) and any(word in ast.unparse(node.test) for word in NEVER_RUN))
        for inner in ast.walk(node):
            if isinstance(inner, IMPORTS):
                note_imports(source, inner, package, runs)
        if runs and not isinstance(node, IMPORTS):
            note_effect(source, node, package)
    for name, nodes in statements.items():
        note_definition(source, name, nodes, package)
    return source


def note_imports(source: Source, node: ast.Import | ast.ImportFrom, package: str, runs: bool) -> None:
    """Add what an import statement of the module's scope binds and, unless it is for types only, runs."""
    for name, imported in imported_names(node, package):
        source.imports[name] = (*source.imports.get(name, ()), imported)
    source.reached |= modules_run(node, package) if runs else set()


def note_effect(source: Source, node: ast.stmt, package: str) -> None:
    """Add a statement that runs on import; what it defines (in its branches, say) is this one unit."""
    unit = unit_of([node], package)
    source.effects.append(unit)
    for inner in ast.walk(node):
        if isinstance(inner, ast.stmt):
            source.units |= dict.fromkeys(names_defined(inner), unit)


def note_definition(source: Source, name: str, nodes: list[ast.stmt], package: str) -> None:
    """Add the unit of a name, and those of its parts."""
    node, parts = nodes[0], {}
    if len(nodes) == 1 and isinstance(node, ast.ClassDef):
        parts = class_parts(node)
        bare = [ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": [
            inner for inner in node.body if not any(inner is part for _, part in parts.values())]})]
        source.units[name] = unit_of(bare, package)
    else:
        source.units[name] = unit_of(nodes, package)
        value = getattr(node, "value", None)
        if len(nodes) == 1 and isinstance(value, ast.Dict) and all(map(is_text, value.keys)):
            parts = {f"{name}[{key.value}]": ("entry", entry) for key, entry in zip(value.keys, value.values)}
    source.parts[name] = {key: kind for key, (kind, _) in parts.items()}
    source.units |= {key: unit_of([part], package) for key, (_, part) in parts.items()}


def class_parts(node: ast.ClassDef) -> dict[str, tuple[str, ast.stmt]]:
    """Key -> (kind, statement) of a class's methods, and of the fields with defaults of a keyword-only dataclass."""
    methods = [inner for inner in node.body if isinstance(inner, FUNCTIONS)]
    names = [method.name for method in methods]
    parts = {f"{node.name}.{method.name}": ("method", method) for method in methods if names.count(method.name) == 1}
    if any("dataclass(" in (text := ast.unparse(decorator)) and "kw_only=True" in text
           for decorator in node.decorator_list):
        parts |= {f"{node.name}.{inner.target.id}": ("field", inner) for inner in node.body
                  if isinstance(inner, ast.AnnAssign) and inner.value is not None}
    return parts


def unit_of(nodes: list[ast.AST], package: str) -> Unit:
    """The unit of some nodes."""
    text = "\n".join(map(ast.dump, nodes))
    return Unit(digest=hashlib.sha256(text.encode()).hexdigest()[:32], reads=read(nodes, package))


def names_defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines and does nothing else; empty for any other statement."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [one.id for one in flat] if all(isinstance(one, ast.Name) for one in flat) else []


def is_text(node: ast.expr | None) -> bool:
    """Whether a node is a string constant."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def plain(tree: ast.Module) -> ast.Module:
    """The tree without docstrings and without the words of errors, in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and is_text(first.value):
                del node.body[0]
        elif isinstance(node, ast.Raise) and node.exc is not None:
            node.exc = Wordless().visit(node.exc)
        elif isinstance(node, ast.Assert):
            node.msg = None
    return tree


class Wordless(ast.NodeTransformer):
    """Empties every text, and leaves out what is formatted into it."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Constant("") if is_text(node) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        return ast.Constant("")
