"""Closures: which edits count, by a package of small modules whose text is edited; nothing of it is imported."""
import textwrap

import pytest

from tasks.opd.store import closures, definitions
from tasks.opd.store.closures import Scope, closure, source_hash

MODULES = {
    "__init__": "",
    "stage": '''
        """Makes things."""
        from math import sqrt
        from typing import TYPE_CHECKING

        from room import middle, noisy, tables
        from room.records import Row, Want
        from room.tables import TABLE
        if TYPE_CHECKING:
            from room.typed import T

        def make(session, spec):
            """Make."""
            from room.lazy import late
            session.engine(late)
            if spec is None:
                raise ValueError(f"no spec: {wording()}")
            assert spec, "nothing to do"
            return middle.double(sqrt(4)), TABLE[spec["name"]](1), Want(sampled=True), Tool().use()  # twice

        def wording():
            return "words"

        def position():
            return 1

        def shadowed(position):
            return [wording for wording in (position,)]

        class Tool(middle.Base):
            """A tool."""
            size = middle.SIZE

            @middle.decorated
            def use(self, how=middle.HOW):
                return shadowed(self.size), how
        ''',
    "middle": '''
        from .deep import two
        SIZE, OTHER_SIZE = 1, 2
        HOW = 3

        def double(x):
            return two() * x

        def decorated(f):
            return f

        def unused():
            return 7

        class Base:
            def inherited(self):
                return 5
        ''',
    "deep": "def two():\n    return three() - 1\n\ndef three():\n    return 3\n",
    "lazy": "def late():\n    return 1\n\ndef other():\n    return 2\n",
    "typed": "T = int\n",
    "noisy": "import room.loud\nX = 1\n",
    "loud": "print('loud')\n",
    "tables": '''
        def one(x):
            return first(x)

        def first(x):
            return 1

        def two(x):
            return 2

        def three(x):
            return 3

        TABLE = {"one": one, "two": two, "three": three}
        ''',
    "records": '''
        from dataclasses import dataclass

        @dataclass(kw_only=True)
        class Want:
            needed: int
            sampled: bool = True
            top_k: int = 0

        @dataclass(kw_only=True)
        class Row:
            a: int = 0
            b: int = 0
        ''',
    "hands": '''
        class Session:
            def __init__(self):
                self.kept = {}

            def engine(self, x):
                return self._open(x)

            def _open(self, x):
                return x

            def log(self):
                return 1
        ''',
    "alone": "def g():\n    return 0\n",
}
SCOPE = Scope(package="room", tables=frozenset({(("room.tables", "TABLE"), frozenset({"one"}))}),
              handed=("room.hands", "Session"))


@pytest.fixture
def room(monkeypatch):
    """`room(module, old, new)` edits a module and returns the hash of `stage.make` then, in the scope given."""
    texts = {f"room.{name}" if name != "__init__" else "room": textwrap.dedent(text) for name, text in MODULES.items()}

    def source_of(module):
        return definitions.taken_apart(texts[module], module, is_package=module == "room") if module in texts else None
    monkeypatch.setattr(closures, "source_of", source_of)

    def edit(module="stage", old="", new="", scope=SCOPE):
        name = f"room.{module}"
        assert old in texts[name], f"{old!r} is not in {module}"
        texts[name] = texts[name].replace(old, new) if old else texts[name] + textwrap.dedent(new)
        source_hash.cache_clear()
        return source_hash("room.stage", "make", scope)
    return edit


@pytest.mark.parametrize("module, old, new", [
    ("stage", "# twice", "# two times, that is"), ("stage", '"""Make."""', '"""Make a thing."""'),
    ("stage", '"""Makes things."""', ""), ("stage", '"""A tool."""', ""), ("deep", "", "\n# the end\n"),
    ("deep", "return 3", "return  (3)")])
def test_comments_docstrings_and_layout_do_not_count(room, module, old, new):
    before = room()
    assert room(module, old, new) == before


@pytest.mark.parametrize("module, old, new", [
    ("stage", "no spec", "no spec was given"), ("stage", '"words"', '"other words"'),
    ("stage", "nothing to do", "do what?")])
def test_the_words_of_an_error_and_who_words_them_do_not_count(room, module, old, new):
    before = room()
    assert room(module, old, new) == before


@pytest.mark.parametrize("module, old, new", [
    ("alone", "0", "1"), ("typed", "int", "str"), ("middle", "return 7", "return 9"), ("lazy", "return 2", "return 9"),
    ("noisy", "X = 1", "X = 2"), ("stage", "", "\ndef more():\n    return 0\n"), ("hands", "return 1", "return 9")])
def test_definitions_that_are_not_reached_do_not_count(room, module, old, new):
    before = room()
    assert room(module, old, new) == before


@pytest.mark.parametrize("what, module, old, new", [
    ("the function itself", "stage", "sqrt(4)", "sqrt(9)"), ("what it calls", "middle", "two() * x", "two() + x"),
    ("a helper of a helper", "deep", "return 3", "return 4"), ("a lazy import", "lazy", "return 1", "return 9"),
    ("a constant beside others", "middle", "SIZE, OTHER_SIZE = 1, 2", "SIZE, OTHER_SIZE = 5, 2"),
    ("a default", "middle", "HOW = 3", "HOW = 4"), ("a decorator", "middle", "return f", "return print or f"),
    ("a method", "stage", "return shadowed(self.size), how", "return shadowed(self.size)"),
    ("a method of a base", "middle", "return 5", "return 6"),
    ("which library", "stage", "from math import sqrt", "from cmath import sqrt"),
    ("which module", "middle", "from .deep import two", "from .tables import two"),
    ("what an import runs", "loud", "'loud'", "'louder'"), ("an assert", "stage", "assert spec", "assert not spec"),
    ("which error", "stage", "raise ValueError", "raise KeyError"),
    ("what a session does", "hands", "return x", "return -x")])
def test_editing_what_is_reached_counts(room, what, module, old, new):
    before = room()
    assert room(module, old, new) != before, what


def test_of_a_table_only_the_chosen_entries_count(room):
    before = room()
    assert room("tables", "return 2", "return 9") == before
    assert room("tables", '"three": three}', '"three": three, "four": two}') == before
    assert room("tables", "return 1", "return 9") != before


def test_an_entry_counts_with_all_that_stands_in_it(room):
    before = room("tables", '"one": one', '"one": dict(function=one, needs=("a",))')
    assert room("tables", 'needs=("a",)', 'needs=("b",)') != before


def test_an_entry_that_code_chooses_by_name_counts_too(room):
    before = room("middle", "return two() * x", 'return two() * x + dict(name="two")["x"]')
    assert room("tables", "return 2", "return 9") != before
    before = room()
    assert room("tables", "return 3", "return 9") == before


def test_a_table_that_is_not_chosen_from_counts_in_whole(room):
    before = room(scope=SCOPE._replace(tables=frozenset()))
    assert room("tables", "return 3", "return 9", scope=SCOPE._replace(tables=frozenset())) != before


def test_a_field_with_a_default_counts_where_its_name_occurs(room):
    before = room()
    assert room("records", "top_k: int = 0", "top_k: int = 1\n    entropy: bool = False") == before
    assert room("records", "sampled: bool = True", "sampled: bool = False") != before
    before = room()
    assert room("records", "needed: int", "needed: float") != before
    before = room("middle", "return two() * x", "return two() * x.top_k")
    assert room("records", "top_k: int = 1", "top_k: int = 2") != before


@pytest.mark.parametrize("use", ["room.records.read(Row)", "Row().x, vars(spec)", "[Row]"])
def test_all_fields_count_of_a_class_that_is_passed_on_and_where_an_object_becomes_a_dict(room, use):
    room("records", "", "\ndef read(row_type):\n    return row_type\n")
    before = room("stage", "Tool().use()", f"Tool().use(), {use.replace('room.records.', 'records.')}")
    before = room("stage", "from room import middle", "from room import records, middle") if "read" in use else before
    assert room("records", "b: int = 0", "b: int = 1") != before


def test_a_local_name_is_not_the_modules(room):
    before = room()
    assert room("stage", "return 1\n\ndef shadowed", "return 2\n\ndef shadowed") == before  # `position`, a parameter
    assert room("stage", "def shadowed(position)", "def shadowed(place)") != before
    before = room()
    assert room("stage", "return 2\n\ndef shadowed", "return 3\n\ndef shadowed") != before  # now the function is meant


@pytest.mark.parametrize("line", ["from room.alone import *", "import room.alone\nkept = [room.alone]"])
def test_where_a_name_cannot_be_told_the_whole_module_counts(room, line):
    room("stage", "from math import sqrt", f"from math import sqrt\n{line}")
    before = room("stage", "Tool().use()", "Tool().use(), g() if spec else kept")
    assert room("alone", "0", "1") != before


def test_what_lies_outside_is_not_followed(room):
    scope = SCOPE._replace(outside=frozenset({"room.deep", "room.lazy:late"}))
    before = room(scope=scope)
    assert room("deep", "return 3", "return 4", scope=scope) == before
    assert room("lazy", "return 1", "return 4", scope=scope) == before
    assert room("middle", "two() * x", "two() + x", scope=scope) != before


def test_nothing_is_imported_to_read_its_source(room):
    assert room("deep", "", "\nraise SystemExit('imported')\n")  # a hash, where an import would have ended the test


def test_a_module_or_function_without_source_is_refused():
    with pytest.raises(ValueError, match="tasks.opd.nowhere has no source"):
        closure("tasks.opd.nowhere", "make", Scope(package="tasks.opd"))
    with pytest.raises(ValueError, match="tasks.opd.core.seeds has no make; it has derive_seed"):
        closure("tasks.opd.core.seeds", "make", Scope(package="tasks.opd"))
