"""What a piece of code reads: names outside it, modules it imports, names of attributes; by its syntax tree."""
import ast
import builtins
from dataclasses import dataclass, field
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
KNOWN = {*dir(builtins), "__file__", "__name__", "__doc__", "__spec__", "__package__"}
ASKING = {"isinstance", "issubclass"}  # a class given to these is not looked into


class Imported(NamedTuple):
    """What an import binds to a name: a module, or a name in it that may be a module too."""
    module: str
    name: str | None


Chain = tuple[Imported | None, tuple[str, ...]]  # where the first name comes from (None: the module's scope), a.b.c


@dataclass(kw_only=True)
class Reads:
    """What code reads."""
    chains: set[Chain] = field(default_factory=set)
    values: set[Chain] = field(default_factory=set)     # those of them that are passed on, not called or annotated
    modules: set[str] = field(default_factory=set)      # imported when it runs
    names: set[str] = field(default_factory=set)        # of attributes and keywords, and strings that may be such
    named: set[str] = field(default_factory=set)        # strings given as `name=..` or {"name": ..}


def read(nodes: list[ast.AST], package: str) -> Reads:
    """What some nodes read; `package` is what relative imports start from."""
    reader = Reader(package)
    for node in nodes:
        reader.visit(node)
    return reader.found


def imported_names(node: ast.Import | ast.ImportFrom, package: str) -> list[tuple[str, Imported]]:
    """The local names that an import binds; `*` for a star."""
    if isinstance(node, ast.Import):
        return [(alias.asname or alias.name.split(".")[0],
                 Imported(alias.name if alias.asname else alias.name.split(".")[0], None)) for alias in node.names]
    base = base_of(node, package)
    return [(alias.asname or alias.name, Imported(base, None if alias.name == "*" else alias.name))
            for alias in node.names]


def modules_run(node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """The modules that an import runs, their packages included; some may be names in a module."""
    base = base_of(node, package)
    full = [alias.name if base is None else f"{base}.{alias.name}" for alias in node.names]
    return {".".join(parts[:count]) for parts in (name.split(".") for name in full)
            for count in range(1, len(parts) + 1)}


def base_of(node: ast.Import | ast.ImportFrom, package: str) -> str | None:
    """The module after `from`; None of a plain import."""
    if isinstance(node, ast.Import):
        return None
    above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def bound_in(function: ast.AST, package: str) -> dict[str, tuple[Imported, ...]]:
    """The names local to a function -> what they were imported as; nothing for any other local name."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    bound: dict[str, tuple[Imported, ...]] = {argument.arg: () for argument in every if argument}
    declared, waiting = set(), list(function.body) if isinstance(function.body, list) else [function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, imported in imported_names(node, package):
                bound[name] = (*bound.get(name, ()), imported)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            declared |= set(node.names)
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            bound.setdefault(node.name, ())
        elif isinstance(node, COMPREHENSIONS):  # their targets are their own, but for := in them
            waiting += [inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
        elif not isinstance(node, ast.Lambda):
            if name := name_stored(node):
                bound.setdefault(name, ())
            waiting += ast.iter_child_nodes(node)
    return {name: targets for name, targets in bound.items() if name not in declared}


def name_stored(node: ast.AST) -> str | None:
    """The name that a node binds by itself: a target, an error that was caught, a capture of a pattern."""
    if isinstance(node, ast.Name):
        return node.id if not isinstance(node.ctx, ast.Load) else None
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        return node.name
    return node.rest if isinstance(node, ast.MatchMapping) else None


def chain_of(node: ast.expr) -> tuple[str, ...] | None:
    """("a", "b", "c") of `a.b.c`; None of anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


class Reader(ast.NodeVisitor):
    """Gathers `Reads`, scope by scope."""

    def __init__(self, package: str):
        self.package, self.found = package, Reads()
        self.scopes: list[dict[str, tuple[Imported, ...]]] = []

    def take(self, chain: tuple[str, ...], *, as_value: bool = True) -> None:
        """A name with attributes is read; a local one is nobody else's unless it was imported."""
        self.found.names |= set(chain[1:])
        origins: tuple[Imported | None, ...] = (None,)
        for scope in reversed(self.scopes):
            if chain[0] in scope:
                origins = scope[chain[0]]
                break
        read = {(origin, chain) for origin in origins}
        self.found.chains |= read
        self.found.values |= read if as_value else set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.take((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if chain := chain_of(node):
            self.take(chain)
        else:
            self.found.names.add(node.attr)
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value.isidentifier():
            self.found.names.add(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        called = chain_of(node.func)
        if called:
            self.take(called, as_value=False)
        else:
            self.visit(node.func)
        for argument in node.args:
            chain = chain_of(argument) if called and called[-1] in ASKING else None
            self.take(chain, as_value=False) if chain else self.visit(argument)
        for keyword in node.keywords:
            self.visit(keyword)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg:
            self.found.names.add(node.arg)
        if node.arg == "name" and isinstance(node.value, ast.Constant):
            self.found.named.add(node.value.value)
        self.visit(node.value)

    def visit_Dict(self, node: ast.Dict) -> None:
        self.found.named |= {value.value for key, value in zip(node.keys, node.values)
                             if isinstance(key, ast.Constant) and key.value == "name"
                             and isinstance(value, ast.Constant)}
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.found.modules |= modules_run(node, self.package)

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.visit_function(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_function(node)

    def visit_function(self, node) -> None:
        """Defaults and annotations in the scope around it, the body in its own."""
        arguments = node.args
        for default in (*arguments.defaults, *filter(None, arguments.kw_defaults)):
            self.visit(default)
        for argument in ast.walk(arguments):
            if isinstance(argument, ast.arg):
                self.visit_annotation(argument.annotation)
        self.visit_annotation(getattr(node, "returns", None))
        self.scopes.append(bound_in(node, self.package))
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(statement)
        self.scopes.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self.visit_annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def visit_annotation(self, node: ast.expr | None) -> None:
        """An annotation names classes, which are not passed on by it; one in quotes is read as what it says."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if node is None or isinstance(node, ast.Constant):
            return
        before = set(self.found.values)
        self.visit(node)
        self.found.values = before
        for inner in (inner for inner in ast.walk(node) if isinstance(inner, ast.Subscript)):
            if (chain_of(inner.value) or ("",))[-1] not in ("Literal", "Annotated"):  # list["Head"]
                elements = inner.slice.elts if isinstance(inner.slice, ast.Tuple) else [inner.slice]
                for element in (element for element in elements if isinstance(element, ast.Constant)):
                    self.visit_annotation(element)

    def visit_ListComp(self, node) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        targets = {inner.id: () for generator in node.generators for inner in ast.walk(generator.target)
                   if isinstance(inner, ast.Name)}
        self.scopes.append(targets)
        for part in (*first.ifs, *others, *((node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,))):
            self.visit(part)
        self.scopes.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp
