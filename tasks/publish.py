"""The task that publishes tables in their folder, and on the run's page in Prefect with a link to MLflow's."""
import re
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.opd.core.files import room_to_write
from tasks.tracking.client import ui_command


@task(cache_policy=NO_CACHE, task_run_name="publish-{name}")
def publish(name: str, texts: dict[str, str], url: str, folder: Path | None = None, *,
            charts: str = "", report: str = "") -> Path | None:
    """Write texts by file name to a folder, where one is given; Markdown and links become artifacts in Prefect."""
    if folder:
        write(texts, folder)
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    for text in (text for file, text in texts.items() if file.endswith(".md")):
        create_markdown_artifact(text, key=f"table-{key}")
    links = (("report", report, "Report"), ("mlflow", url, "MLflow"), ("charts", charts, "All runs side by side"))
    for kind, address, title in (link for link in links if link[1]):
        create_link_artifact(address, key=f"{kind}-{key}", link_text=title, description=how_to_open())
    return folder


def write(texts: dict[str, str], folder: Path) -> None:
    """Texts by file name."""
    with room_to_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def how_to_open() -> str:
    """What must run for the link to lead somewhere; nothing where MLflow is a server."""
    command = ui_command()
    return "" if command.startswith("http") else f"It opens while this command runs: `{command}`"
