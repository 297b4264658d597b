"""What a worker keeps between stages: engines with their weights loaded, and the training state. No torch at import."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.opd.core import metrics
from tasks.opd.core.files import folder_version
from tasks.opd.core.progress import Progress

BOUND_TO = {"torch": ("dtype",), "vllm": ("dtype", "memory_share", "lora_rank", "longest_tokens"),
            "server": ("longest_tokens", "patience_seconds")}  # engine -> settings under which it is opened


class Session:
    """Engines by role, resident training state, metrics and progress bars. A context manager: leaving it closes all."""

    def __init__(self):
        self.report: Callable[[dict], None] | None = None  # hears of progress too, see `progress`
        self.trainer: Any | None = None  # owned by training
        self._engines: dict[tuple, tuple[Any, dict, tuple]] = {}  # (role, name) -> engine, its kind, whose weights

    def engine(self, role: str, folder: Path, settings: dict):
        """The engine of a role with the weights of `folder`.

        Engines are kept: the same folder is reused as it is, another folder is loaded in place and must then be what
        the engine holds (see `canary`). settings holds name ("torch" or "vllm"), dtype and batch_tokens; a role may
        have one engine of each name, and another kind (see `kind_of`) makes a new one. Roles whose models stand on one
        base share it where the engine can (`share_base`). Raises: EngineError when weights are stale.
        """
        from tasks.opd.engines.canary import check_canary
        from tasks.opd.models.digests import check_digests
        key, dtype, weights = (role, settings["name"]), settings["dtype"], folder_version(folder)
        kind = kind_of(Path(folder), settings)
        engine, old_kind, old_weights = self._engines.get(key, (None, None, None))
        if engine is not None and old_kind != kind:
            self._engines.pop(key)
            engine.close()
            engine, old_weights = None, None
        self.sleep(but=engine)
        if engine is None:
            engine = self._sharing(Path(folder), kind) or open_engine(Path(folder), kind, settings)
            self._engines[key] = engine, kind, None
        elif old_weights != weights:
            self._engines[key] = engine, kind, None  # whatever a failed load leaves behind is not those weights
            check_digests(engine.load(Path(folder)), Path(folder), dtype)
        if old_weights != weights:
            check_canary(engine, Path(folder), dtype)
        if settings.get("batch_tokens"):
            engine.batch_tokens = settings["batch_tokens"]
        engine.share_prompts = settings.get("share_prompts", True)
        self._engines[key] = engine, kind, weights
        return engine

    def _sharing(self, folder: Path, kind: dict):
        """An engine on the base model that the engine of another role holds already; None where there is none."""
        for engine, other_kind, weights in self._engines.values():
            alike = other_kind == kind and weights and hasattr(engine, "share_base")
            if alike and (shared := engine.share_base(folder)):
                return shared
        return None

    def sleep(self, but: Any = None) -> None:
        """All engines leave the device to who comes now, where they can; `but` who shares its weights with `but`."""
        for engine, *_ in self._engines.values():
            if but is None or shared_by(engine) is not shared_by(but):
                engine.sleep()

    def log(self, out: Path, step: int, values: dict[str, float]) -> None:
        """Append points to the metrics of the stage that writes to `out`."""
        metrics.append(Path(out) / metrics.FILE, step, values)

    def progress(self, total: int | None, label: str, unit: str) -> Progress:
        """A bar with ETA on stderr, shown after two seconds; use it with `with`, and call `.update(n)`."""
        return Progress(total, label, unit, self.report)

    def close(self) -> None:
        """Close all engines and drop the training state; the session can be used again."""
        engines, self._engines, self.trainer = self._engines, {}, None
        for engine, *_ in engines.values():
            engine.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def shared_by(engine: Any) -> Any:
    """One object for all engines that stand on the same weights; the engine itself where it shares none."""
    return getattr(engine, "llm", None) or getattr(engine, "sharers", engine)


def kind_of(folder: Path, settings: dict) -> dict:
    """What an engine is, and what it is bound to for life. A model behind a server has no weights here.

    Raises: ValueError for a name that no engine has.
    """
    name = "server" if is_served(folder) else settings["name"]
    if name not in BOUND_TO:
        raise ValueError(f"engine name is {name!r}; allowed: torch, vllm")
    return {"name": name, **{key: settings[key] for key in BOUND_TO[name] if settings.get(key)}}


def is_served(folder: Path) -> bool:
    """Whether a model's folder names a server instead of holding weights."""
    return (folder / "server.json").exists()


def open_engine(folder: Path, kind: dict, settings: dict):
    """A new engine of a kind (see `kind_of`)."""
    options = {key: value for key, value in kind.items() if key != "name"}
    if settings.get("batch_tokens"):
        options["batch_tokens"] = settings["batch_tokens"]
    return ENGINES[kind["name"]](folder, options)


def open_torch(folder: Path, options: dict):
    """Transformers in this process. Each of these imports its library, so that a session costs nothing until then."""
    from tasks.opd.engines.torch_engine import TorchEngine
    return TorchEngine(folder, **options)


def open_vllm(folder: Path, options: dict):
    """vLLM."""
    from tasks.opd.engines.vllm_engine import VllmEngine
    return VllmEngine(folder, **options)


def open_server(folder: Path, options: dict):
    """A server elsewhere, which has its own batches; its patience ends before the worker's with it."""
    from tasks.opd.engines.http.server_engine import ServerEngine
    bounds = {"patience_seconds": options["patience_seconds"] / 2} if "patience_seconds" in options else {}
    return ServerEngine(folder, longest_tokens=options.get("longest_tokens"), **bounds)


ENGINES = {"torch": open_torch, "vllm": open_vllm, "server": open_server}
