"""The house rules, read off the source: who imports whom, how long things may be, which words are used.

Nothing is imported, except by the two tests that start a fresh interpreter.
"""
import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.opd.recipe import slots

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("core", "store", "recipe", "models", "engines", "data", "rollouts", "scoring", "makers", "objective",
         "training", "evaluation", "refresh", "runtime")  # packages of tasks/opd: each imports itself and those above
TORCH_FREE = ("core.errors", "core.records", "core.metrics", "store.artifacts", "store.fingerprints",
              "store.hidden_states", "store.run_records", "store.garbage", "recipe.schema", "recipe.slots",
              "recipe.loading", "recipe.refreshes", "recipe.requirements", "recipe.checks.recipes",
              "evaluation.comparison_tables", "evaluation.clusters", "evaluation.findings", "evaluation.report.suites",
              "evaluation.report.page", "refresh.planning", "refresh.candidates")
HEAVY = {"torch", "transformers", "vllm", "mlflow", "datasets"}
ONLY_IN = {"mlflow": "tasks/tracking/client.py", "vllm": "tasks/opd/engines/vllm_engine.py",
           "omegaconf": "tasks/opd/recipe/loading.py"}
AT_IMPORT = {"torch", "transformers", "safetensors", "pyarrow", "numpy", "pydantic"}  # all that a bare GPU machine has
MACHINERY = {"tasks/stage.py", "tasks/workers/pools.py", "tasks/workers/launchers.py", "tasks/server.py",
             "tasks/devices.py", "tasks/__init__.py"}  # behind the tasks
TABLES = {table: module for module, table in slots.TABLES.values()}  # table -> module in tasks/opd
WORDS = {  # what design calls by another name: as a whole identifier or as part of one
    "log_prob", "log_probs", "logp", "logps", "actor", "expert", "ref_model", "behaviour_model", "behavior_model",
    "cfg", "response", "responses", "trajectory", "trajectories", "judge", "iteration", "iterations",
}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    """`tasks/opd/models/heads.py`."""
    return path.relative_to(ROOT).as_posix()


SOURCES = sorted(name_of(path) for room in ("flows", "tasks") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted(name_of(path) for path in (ROOT / "tests").rglob("*.py"))


@functools.cache
def tree_of(name: str) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse((ROOT / name).read_text(), filename=name)


def is_type_checking(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` is never run."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes_run_at_import(node: ast.AST):
    """Every node below `node` that runs when the module is imported: function bodies and type checking left out."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.Lambda)) and not is_type_checking(child):
            yield child
            yield from nodes_run_at_import(child)


def imports(name: str, *, at_import: bool = False) -> set[str]:
    """Dotted names a file imports; `from a import b` gives a.b, since b may be a module."""
    found = set()
    for node in nodes_run_at_import(tree_of(name)) if at_import else ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split("/")[:-node.level] if node.level else []
            origin = ".".join([*package, *filter(None, [node.module])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def packages(name: str, *, at_import: bool = False) -> set[str]:
    """Top-level names a file imports."""
    return {dotted.split(".")[0] for dotted in imports(name, at_import=at_import)}


def file_of(dotted: str) -> str | None:
    """The source file of `tasks.opd.models.heads` or of `tasks.opd.models.heads.Head`, or None."""
    parts = dotted.split(".")
    for length in (len(parts), len(parts) - 1):
        stem = "/".join(parts[:length])
        for name in (f"{stem}.py", f"{stem}/__init__.py"):
            if name in SOURCES:
                return name
    return None


def closure(name: str) -> set[str]:
    """The source files that importing a file runs, itself included."""
    seen, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        seen.add(current)
        found = (file_of(dotted) for dotted in imports(current, at_import=True))
        waiting += [other for other in found if other and other not in seen]
    return seen


def functions(name: str) -> list[ast.FunctionDef]:
    """Every function of a file, methods and nested ones included."""
    return [node for node in ast.walk(tree_of(name)) if isinstance(node, FUNCTIONS)]


def num_lines(name: str) -> int:
    """Lines of a file."""
    return len((ROOT / name).read_text().splitlines())


def layer_of(name: str) -> int:
    """2: flows, 1: tasks and what runs them, 0: the library."""
    return 2 if name.startswith("flows/") else 0 if name.startswith("tasks/opd/") else 1


def identifiers(name: str) -> list[tuple[int, str]]:
    """(line, name) of everything a file names itself: variables, parameters, functions, classes, fields."""
    found = []
    for node in ast.walk(tree_of(name)):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            found.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.lineno, node.id))
    return found


def depth(node: ast.AST) -> int:
    """How deep blocks nest below a node; `elif` is as deep as its `if`, and a nested function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def none_of(found) -> bool:
    """That nothing was found, else a failure that lists all of it."""
    found = [str(item) for item in found]
    assert not found, "\n".join(["", *sorted(found)])
    return True


def over(limit: int, lines_of: dict[str, int]) -> list[str]:
    """The names whose number of lines exceeds a limit."""
    return [f"{name} has {lines} lines, at most {limit}" for name, lines in lines_of.items() if lines > limit]


def test_layers_only_point_down():
    assert none_of(f"{name} imports {dotted}" for name in SOURCES for dotted in imports(name)
                   if (target := file_of(dotted)) and layer_of(target) > layer_of(name))


def package_of(name: str) -> str:
    """The package of tasks/opd that a file lies in: `recipe` of tasks/opd/recipe/checks/terms.py; "" outside all."""
    parts = name.split("/")
    return parts[2] if name.startswith("tasks/opd/") and len(parts) > 3 else ""


def imported_files(name: str) -> set[str]:
    """The source files that a file names in its imports, at the top or inside functions."""
    return {target for dotted in imports(name) if (target := file_of(dotted))} - {name}


def test_every_module_of_the_library_lies_in_a_package_of_the_order():
    modules = [name for name in SOURCES if name.startswith("tasks/opd/") and name != "tasks/opd/__init__.py"]
    assert modules and none_of(name for name in modules if package_of(name) not in ORDER)
    assert {package_of(name) for name in modules} == set(ORDER)


def test_packages_import_only_those_before_them():
    assert none_of(f"{name} imports {target}" for name in SOURCES if package_of(name)
                   for target in imported_files(name) if package_of(target)
                   and ORDER.index(package_of(target)) > ORDER.index(package_of(name)))


def test_no_module_imports_itself_by_a_detour():
    reached = {name: imported_files(name) for name in SOURCES}
    for name in SOURCES:
        seen, waiting = set(), [*reached[name]]
        while waiting:
            current = waiting.pop()
            waiting += reached[current] - seen
            seen |= {current, *reached[current]}
        assert name not in seen, f"{name} reaches itself"


def test_a_package_lists_its_modules():
    for file in (name for name in SOURCES if name.endswith("/__init__.py")
                 and (package_of(name) or name.startswith(("tasks/tracking/", "flows/platform/")))):
        told, folder = ast.get_docstring(tree_of(file)) or "", (ROOT / file).parent
        assert len(tree_of(file).body) == 1, f"{file} holds more than its docstring"
        parts = {path.stem for path in folder.glob("*.py")}
        parts |= {path.parent.name for path in folder.glob("*/__init__.py")}
        listed = {line.split()[0] for line in told.splitlines()[2:] if line.strip()}
        assert listed == parts - {"__init__"}, f"{file} lists {sorted(listed)}, holds {sorted(parts)}"


def test_the_tests_mirror_the_library():
    folders = {name.split("/")[1] for name in TESTS if name.count("/") > 1}
    assert folders == {*ORDER, "tracking", "platform", "e2e", "browser", "gpu", "infra", "peers"}
    assert none_of(name for name in TESTS if name.split("/")[1] in ORDER
                   and not (ROOT / "tasks/opd" / "/".join(name.split("/")[1:-1])).is_dir())


def test_prefect_stops_at_the_doors():
    assert none_of(name for name in SOURCES if "prefect" in packages(name) and layer_of(name) == 0)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_with_one_home_is_imported_nowhere_else(library):
    assert none_of(name for name in SOURCES if library in packages(name) and name != ONLY_IN[library])


def test_omegaconf_is_imported_where_it_is_used():
    assert "omegaconf" not in packages("tasks/opd/recipe/loading.py", at_import=True)


def test_flows_name_no_torch():
    assert none_of(name for name in SOURCES if layer_of(name) == 2 and packages(name) & HEAVY)


def test_rooms_need_six_libraries_at_import():
    allowed = AT_IMPORT | sys.stdlib_module_names | {"tasks"}
    assert none_of(f"{name} imports {further}" for name in SOURCES if layer_of(name) == 0
                   if (further := packages(name, at_import=True) - allowed))


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_torch_free_module_reaches_no_torch(module):
    reached = closure(f"tasks/opd/{module.replace('.', '/')}.py")
    assert none_of(f"{name} imports {heavy}" for name in reached if (heavy := packages(name, at_import=True) & HEAVY))


def loaded_by(modules: list[str]) -> set[str]:
    """The top-level packages that a fresh interpreter holds after importing modules."""
    script = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return {module.split(".")[0] for module in json.loads(result.stdout.splitlines()[-1])}


def test_importing_the_flow_loads_no_heavy_library():
    assert loaded_by(["flows.distill"]) & HEAVY == set()


def test_torch_free_modules_load_no_heavy_library():
    assert loaded_by([f"tasks.opd.{module}" for module in TORCH_FREE]) & (HEAVY | {"prefect", "omegaconf"}) == set()


def test_modules_stay_below_the_wall():
    assert none_of(over(300, {name: num_lines(name) for name in SOURCES}))
    assert none_of(over(400, {name: num_lines(name) for name in TESTS}))


def test_functions_fit_on_a_screen():
    assert none_of(over(40, {f"{name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
                             for name in SOURCES for node in functions(name)}))


def test_blocks_nest_three_deep():
    assert none_of(f"{name}:{node.lineno} {node.name} nests {deep} deep" for name in SOURCES for node in functions(name)
                   if (deep := depth(node)) > 3)


def test_lines_are_120_wide():
    assert none_of(f"{name}:{number}" for name in [*SOURCES, *TESTS]
                   for number, line in enumerate((ROOT / name).read_text().splitlines(), 1) if len(line) > 120)


def test_flows_read_like_figure_1():
    assert none_of(over(60, {name: num_lines(name) for name in SOURCES
                             if layer_of(name) == 2 and name.count("/") == 1}))


def test_doors_are_thin():
    assert none_of(over(40, {name: num_lines(name) for name in SOURCES if layer_of(name) == 1 and name.count("/") == 1
                           and name not in MACHINERY}))


def test_a_variant_is_25_lines():
    variants = [name_of(path) for path in (ROOT / "configs/variants").glob("*.yaml")]
    assert variants, "configs/variants is empty"
    assert none_of(over(25, {name: num_lines(name) for name in variants}))


def is_recipe_name(node: ast.AST, variants: set[str]) -> bool:
    """`recipe.name`, `variant.name`, or a literal that is a variant's name."""
    if isinstance(node, ast.Attribute) and node.attr == "name":
        return ast.unparse(node.value).split(".")[-1] in ("recipe", "variant")
    return isinstance(node, ast.Constant) and node.value in variants


def test_no_code_asks_for_a_recipes_name():
    # `grpo` names an advantage and the variant that uses it: static checks may ask for a slot's entry.
    entries = {entry for table in TABLES for entry, _ in table_functions(table)}
    variants = {path.stem for path in (ROOT / "configs/variants").glob("*.yaml")} - entries
    asking = []
    for name in SOURCES:
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.Compare):
                asked = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            elif isinstance(node, ast.Match):
                asked = [*ast.walk(node.subject), *(part for case in node.cases for part in ast.walk(case.pattern))]
            else:
                continue
            asking += [f"{name}:{node.lineno}" for part in asked if is_recipe_name(part, variants)]
    assert none_of(asking)


def table_functions(table: str) -> list[tuple[str, ast.FunctionDef | None]]:
    """The entries of a slot's table: (name in YAML, its function in that file or None)."""
    stem = f"tasks/opd/{TABLES[table].replace('.', '/')}"
    name = next((name for name in (f"{stem}.py", f"{stem}/__init__.py") if name in SOURCES), None)
    assert name, f"{stem}.py is missing"
    body = tree_of(name).body
    assigned = [node for node in body if isinstance(node, (ast.Assign, ast.AnnAssign))
                and table in ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])]
    assert len(assigned) == 1 and isinstance(assigned[0].value, ast.Dict), f"{name} needs one dict {table}"
    entries = assigned[0].value
    return [(ast.literal_eval(key), function_of(name, ast.unparse(value.args[0])))
            for key, value in zip(entries.keys, entries.values, strict=True)]


def function_of(name: str, function: str) -> ast.FunctionDef | None:
    """A function of a file, or of the module of tasks/opd from which the file imports it; None without one."""
    own = {node.name: node for node in tree_of(name).body if isinstance(node, FUNCTIONS)}
    origins = [file for dotted in imports(name) if dotted.endswith(f".{function}") and (file := file_of(dotted))]
    return own.get(function) or next((found for file in origins if (found := function_of(file, function))), None)


@pytest.mark.parametrize("table", TABLES)
def test_an_entry_of_a_slots_table_is_a_documented_function_with_annotated_parameters(table):
    for entry, function in table_functions(table):
        assert function is not None, f"{table}[{entry!r}] is no function of tasks/opd"
        assert ast.get_docstring(function), f"{table}[{entry!r}] has no docstring"
        bare = [parameter.arg for parameter in function.args.kwonlyargs if parameter.annotation is None]
        assert bare == [], f"{table}[{entry!r}] has parameters without annotation"


def test_a_module_says_what_it_is():
    assert none_of(name for name in SOURCES if tree_of(name).body and not ast.get_docstring(tree_of(name)))


def test_things_are_called_by_one_name():
    wrong = []
    for name in SOURCES:
        for line, identifier in identifiers(name):
            padded = f"_{identifier.lower()}_"
            wrong += [f"{name}:{line} {identifier}" for word in WORDS if f"_{word}_" in padded]
    assert none_of(wrong)
