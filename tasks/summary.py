"""The summary: a run's first artifact in Prefect, with the verdict on its first line once there is one."""
import re

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.runtime import flow_run


class Summary:
    """A Markdown artifact, made as the run begins, so that it stands before all others."""

    def __init__(self, recipe: str, note: str):
        self.rest = [f"Note: {note}"] if note else []
        self.rest += ["The recipe as it is run, or a suite's first:", f"```yaml\n{recipe}```"]
        key = "summary-" + re.sub(r"[^a-z0-9]+", "-", flow_run.name.lower()).strip("-")
        self.artifact = create_markdown_artifact("\n\n".join(["No verdict yet.", *self.rest]), key=key)

    def show(self, verdict: str, *sections: str) -> None:
        """Put the verdict on the first line, and sections in Markdown between it and the recipe."""
        text = "\n\n".join([f"**{verdict}**", *sections, *self.rest])
        with get_client(sync_client=True) as client:
            client.update_artifact(self.artifact, ArtifactUpdate(data=text))
