"""Which MLflow run a flow's work belongs to: one a (variant, seed), under one parent a suite."""
import contextlib
import hashlib
import json
from contextvars import ContextVar
from dataclasses import asdict

from tasks import server
from tasks.opd.core.addresses import masked
from tasks.opd.evaluation.findings import Finding
from tasks.opd.recipe.schema import Recipe
from tasks.opd.store.artifacts import Artifact
from tasks.opd.store.fingerprints import canonical
from tasks.tracking.about import REPORT, About
from tasks.tracking.outbox import KILLED, Run
from tasks.tracking.params import params_of
from tasks.tracking.points import PREFIXES, Note

_current: ContextVar[Run | None] = ContextVar("tracking_run", default=None)
_note: ContextVar[str] = ContextVar("note", default="")  # what a person wrote about the runs made meanwhile


def log_artifact(artifact: Artifact, name: str, *, step: int = 0, prefix: str = "") -> Artifact:
    """The artifact; the open run, if any, is told of it. Numeric counts become metrics `<prefix or kind>/<count>`."""
    run, (stage, _, rest) = _current.get(), (prefix or artifact.kind).partition("/")
    if run is not None:
        prefix = "/".join(filter(None, [PREFIXES.get(stage, stage), rest]))
        run.notes.append(Note(artifact=artifact, name=name, step=step, prefix=prefix))
    return artifact


def log_findings(findings: list[Finding]) -> None:
    """Keep what rules found in the open run, if any, as findings.json."""
    run = _current.get()
    if run is not None and findings:
        run.files["findings.json"] = json.dumps([asdict(finding) for finding in findings], indent=1)


def attach_report(html: str) -> None:
    """Ship a page with the open run, if any; a later one takes an earlier one's place."""
    if run := _current.get():
        run.files[REPORT] = html


@contextlib.contextmanager
def run_for(recipe: Recipe, suite: str | None = None):
    """The run of (suite, recipe), created once and then continued, takes what is logged inside. Yields the Run."""
    import yaml
    resolved, about = recipe.model_dump(mode="json"), recipe.about.model_dump(exclude_defaults=True)
    about = About(name=f"{recipe.name}-seed{recipe.seed}", params=params_of(resolved),
                  files={"recipe.yaml": yaml.safe_dump(resolved, sort_keys=False)},
                  note="\n\n".join(filter(None, (_note.get(), prefect_link(), note_of(recipe)))),
                  benchmarks=tuple(benchmark.name for benchmark in recipe.benchmarks),
                  tags={"variant": recipe.name, "seed": str(recipe.seed), "pair": recipe.pair.name,
                        "config.sha256": hashlib.sha256(canonical(resolved).encode()).hexdigest(), **prefect_tags(),
                        **{f"about.{key}": str(value) for key, value in about.items()}})
    parent = parent_of(suite) if suite else None
    run = Run(key_of(suite or "", resolved), suite or "opd", about, parent)
    if parent:
        parent.cells.append(run)
    with opened(run):
        yield run


@contextlib.contextmanager
def suite_for(suite: str):
    """The parent run of a suite's runs. Yields the Run."""
    with opened(suite_run(suite, prefect_tags(), prefect_link())) as run:
        yield run


def parent_of(suite: str) -> Run:
    """The suite's run: the one that is open around this one, else a reference to it."""
    around = _current.get()
    return around if around and around.file.stem == key_of(suite) else suite_run(suite)


def suite_run(suite: str, tags: dict[str, str] | None = None, note: str = "") -> Run:
    return Run(key_of(suite), suite, About(name=suite, tags={"suite": suite, **(tags or {})}, params={}, files={},
                                           note=note))


@contextlib.contextmanager
def annotated(note: str):
    """Runs that begin inside have a person's note, in their description and as the tag `note`."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


@contextlib.contextmanager
def opened(run: Run):
    """Make a run the one that notes go to; it ends FINISHED, FAILED, or KILLED when interrupted or cancelled."""
    token, status = _current.set(run), "FINISHED"
    run.thread.start()
    try:
        yield run
    except BaseException as error:
        status = KILLED if was_stopped(error) else "FAILED"
        raise
    finally:
        _current.reset(token)
        run.close(status)


def was_stopped(error: BaseException | None) -> bool:
    """Whether an error is a signal, or arose on the way out after one: Prefect's own code may fail there."""
    return error is not None and (not isinstance(error, Exception) or was_stopped(error.__cause__ or error.__context__))


def key_of(suite: str, resolved: dict | None = None) -> str:
    return hashlib.sha256(canonical([suite, resolved]).encode()).hexdigest()[:32]


def note_of(recipe: Recipe) -> str:
    """Markdown: the variant's paper, its arXiv id with a link, and its idea; empty when none is said."""
    about = recipe.about
    arxiv = f"[arXiv:{about.arxiv}](https://arxiv.org/abs/{about.arxiv})" if about.arxiv else ""
    return "\n\n".join(filter(None, (", ".join(filter(None, (about.paper, arxiv))), about.idea)))


def prefect_tags() -> dict[str, str]:
    """What leads to the flow run at work, and a person's note; empty outside of any."""
    from prefect.runtime import flow_run
    tags = {"prefect.flow_run_id": str(flow_run.id) if flow_run.id else "", "prefect.page": prefect_page(),
            "note": _note.get()}
    return {key: value for key, value in tags.items() if value}


def prefect_page() -> str:
    """The page of the flow run at work; empty outside of any, and where the command's own server, without pages, is."""
    from prefect.runtime import flow_run
    from prefect.utilities.urls import url_for
    return masked(url_for("flow-run", flow_run.id) or "") if flow_run.id and not server.is_own() else ""


def prefect_link() -> str:
    """That page as Markdown."""
    page = prefect_page()
    return f"[This run in Prefect]({page})" if page else ""
