"""The code that a function's result can depend on: its closure over the definitions of a package, and its hash.

From the function every name is followed to the definition it stands for, through imports (also inside functions) and
attributes of modules, and on from there. Where a name cannot be told, the whole module counts. Of a table that the
caller names only the chosen entries count, and those that code chooses itself by `name`. A field with a default
counts where its name occurs; unless the class, or an object as a dict, is passed on to who may look at all fields.
"""
import functools
import hashlib
from typing import NamedTuple

from tasks.opd.store.definitions import Source, Unit, source_of
from tasks.opd.store.references import KNOWN, Imported

Key = tuple[str, str]                   # module, key of a unit in it
AS_DICT = {"asdict", "astuple", "vars", "__dict__"}    # with one of these an object's every field may be read
DYNAMIC = {"globals", "locals", "eval", "exec", "__import__", "import_module"}  # what these find is not told by a name


class Scope(NamedTuple):
    """What is followed, and how."""
    package: str                        # definitions of its modules are followed, and of the module one starts from
    tables: frozenset[tuple[Key, frozenset[str]]] = frozenset()  # constants that are dicts -> the entries chosen
    handed: Key | None = None           # a class of which every function is given an object: methods by their name
    outside: frozenset[str] = frozenset()  # modules, or module:name, that cannot change a result: not followed


@functools.cache
def source_hash(module: str, function: str, scope: Scope) -> str:
    """Hash of the closure of `module.function`. Raises ValueError when there is no such source."""
    units = {":".join(key): digest for key, digest in closure(module, function, scope).items()}
    return hashlib.sha256("\n".join(f"{key} {units[key]}" for key in sorted(units)).encode()).hexdigest()


def closure(module: str, function: str, scope: Scope) -> dict[Key, str]:
    """(module, name) of every unit in the closure of `module.function` -> its hash.

    Raises: ValueError when the module has no source file, or no such definition.
    """
    source = source_of(module)
    if source is None:
        raise ValueError(f"module {module} has no source file on sys.path")
    if function not in source.units:
        raise ValueError(f"{module} has no {function}; it has {', '.join(source.parts)}")
    walk = Walk(module, scope)
    walk.define(source, function)
    if scope.handed and (handed := source_of(scope.handed[0])):
        walk.define(handed, scope.handed[1])
    walk.run()
    return walk.units


class Walk:
    """A closure as it grows."""

    def __init__(self, start: str, scope: Scope):
        self.start, self.scope, self.tables = start, scope, dict(scope.tables)
        self.units: dict[Key, str] = {}
        self.waiting: list[tuple[Source, Unit]] = []
        self.optional: dict[Key, str] = {}              # parts that are not wanted so far -> field, method or entry
        self.names, self.named = set(), set()           # as in `Reads`, of all units
        self.looked_into: set[Key] = set()              # classes that are passed on as values
        self.modules: set[str] = set()

    def run(self) -> None:
        """Follow all that waits, then the parts that are wanted by it, until nothing is left."""
        while self.waiting or self.wanted():
            while self.waiting:
                self.read(*self.waiting.pop())
            for module, key in self.wanted():
                self.add(source_of(module), key)
                del self.optional[module, key]

    def wanted(self) -> list[Key]:
        """The optional parts whose name has come up, and the fields that are looked into."""
        every = bool(AS_DICT & self.names)
        return [(module, key) for (module, key), kind in self.optional.items()
                if word_of(key) in (self.named if kind == "entry" else self.names)
                or kind == "field" and (every or (module, key.split(".")[0]) in self.looked_into)]

    def follows(self, module: str) -> bool:
        """Whether the definitions of a module are followed."""
        inside = module == self.start or f"{module}.".startswith(f"{self.scope.package}.")
        return inside and module not in self.scope.outside

    def read(self, source: Source, unit: Unit) -> None:
        """Follow what a unit reads."""
        self.names |= unit.reads.names
        self.named |= unit.reads.named
        for module in unit.reads.modules:
            self.reach(module)
        for chain in unit.reads.chains:
            origin, parts = chain
            as_value = chain in unit.reads.values
            if origin is not None:
                self.resolve_import(origin, parts[1:], as_value)
            else:
                self.resolve(source, parts, as_value)
            if parts[-1] in DYNAMIC:
                self.add_whole(source)
            if parts[-1] in AS_DICT:
                self.names.add(parts[-1])

    def resolve(self, source: Source, parts: tuple[str, ...], as_value: bool) -> None:
        """Follow a name in a module's scope, with attributes."""
        first, *rest = parts
        if first in source.units:
            self.define(source, first)
            if as_value and not rest:
                self.looked_into.add((source.name, first))
        elif first in source.imports:
            self.units[source.name, f"import {first}"] = repr(source.imports[first])  # of another library, another code
            for imported in source.imports[first]:
                self.resolve_import(imported, tuple(rest), as_value)
        elif first not in KNOWN:
            self.add_whole(source)

    def resolve_import(self, imported: Imported, rest: tuple[str, ...], as_value: bool) -> None:
        """Follow an imported name, with attributes."""
        self.resolve_in(imported.module, (imported.name, *rest) if imported.name else rest, as_value)

    def resolve_in(self, module: str, parts: tuple[str, ...], as_value: bool) -> None:
        """Follow attributes of a module; of one that is passed on, or lacks such a name, all counts."""
        if not self.follows(module) and not self.scope.package.startswith(f"{module}."):
            return
        source = source_of(module)
        if parts and source and (parts[0] in source.units or parts[0] in source.imports):
            self.resolve(source, parts, as_value)
        elif parts and source_of(f"{module}.{parts[0]}"):
            self.resolve_in(f"{module}.{parts[0]}", parts[1:], as_value)
        elif source and self.follows(module):
            self.add_whole(source)

    def define(self, source: Source, name: str) -> None:
        """Add a definition, with those of its parts that count."""
        key, parts = (source.name, name), source.parts.get(name, {})
        if key in self.units or f"{source.name}:{name}" in self.scope.outside:
            return
        kinds, chosen = {"field"}, self.tables.get(key)
        if key in self.tables and "entry" in parts.values():
            kinds.add("entry")
            self.units[key] = ""
            self.reach(source.name)
        else:
            self.add(source, name)
        kinds |= {"method"} if key == self.scope.handed else set()
        for part, kind in parts.items():
            if kind in kinds and word_of(part) not in (chosen or ()) and not word_of(part).startswith("__"):
                self.optional[source.name, part] = kind
            elif kind != "entry" or chosen is not None:
                self.add(source, part)

    def add(self, source: Source, key: str) -> None:
        """Add a unit, and what importing its module runs."""
        if (source.name, key) in self.units:
            return
        self.units[source.name, key] = source.units[key].digest
        self.waiting.append((source, source.units[key]))
        self.reach(source.name)

    def add_whole(self, source: Source) -> None:
        """Add every definition of a module, and of those that it imports everything from."""
        for name in source.parts:
            self.define(source, name)
        for imported in source.imports.get("*", ()):
            self.resolve_in(imported.module, (), False)

    def reach(self, module: str) -> None:
        """Add the statements that run when a module is imported, and when those are that it imports."""
        if module in self.modules or not self.follows(module):
            return
        self.modules.add(module)
        source = source_of(module)
        for number, unit in enumerate(source.effects if source else ()):
            self.units[module, f"effect {number}"] = unit.digest
            self.waiting.append((source, unit))
        for other in source.reached if source else ():
            self.reach(other)


def word_of(key: str) -> str:
    """What a part is called: `part` of Class.part, `entry` of TABLE[entry]."""
    return key.partition("[")[2][:-1] if "[" in key else key.rpartition(".")[2]
