"""Door to the people: a suite's table in its folder, and in Prefect with a link to MLflow."""
import re

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.opd.artifacts import home
from tasks.opd.disk import room_to_write


@task(cache_policy=NO_CACHE)
def publish(suite: str, texts: dict[str, str], url: str) -> str:
    """Write texts by file name to the suite's folder, which is returned; Markdown also becomes a Prefect artifact."""
    folder, key = home() / "suites" / suite, re.sub(r"[^a-z0-9]+", "-", suite)
    with room_to_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    for text in (text for name, text in texts.items() if name.endswith(".md")):
        create_markdown_artifact(text, key=f"table-{key}")
    create_link_artifact(url, key=f"mlflow-{key}", link_text="MLflow")
    return str(folder)
