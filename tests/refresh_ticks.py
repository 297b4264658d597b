"""Ticks of a refresh in processes of their own that a test may kill, forked from one that has imported everything.

`python -m tests.refresh_ticks` reads lines of JSON, {"flow": name, "parameters": {..}, "environment": {..}}; answers
each are {"status": how the process ended, "result": what the flow returned, "error": ..}. No flow is run before a
fork, so that no thread is lost in it; but the source that fingerprints are of is read, which takes a second.
"""
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Ticks:
    """The process that forks, from a test's side."""

    def __init__(self, **environment: str):
        self.process = subprocess.Popen([sys.executable, "-m", "tests.refresh_ticks"], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env={**os.environ, **environment})

    def begin(self, flow: str, parameters: dict, **environment) -> None:
        """Start a flow; `answer` waits for its end."""
        line = {"flow": flow, "parameters": parameters, "environment": {k: str(v) for k, v in environment.items()}}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        """How the flow that was begun ended."""
        return json.loads(self.process.stdout.readline())

    def run(self, flow: str, parameters: dict, **environment) -> dict:
        """Start a flow and wait for its end."""
        self.begin(flow, parameters, **environment)
        return self.answer()

    def close(self) -> None:
        """End the process, which has no child by then."""
        self.process.stdin.close()
        self.process.wait(600)
        self.process.stdout.close()


def perform(asked: dict, flows: dict, out: Path) -> None:
    """Run a flow in this, forked, process, and leave what came of it in a file."""
    os.environ.update(asked["environment"])
    try:
        told = {"result": flows[asked["flow"]](**asked["parameters"])}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    out.write_text(json.dumps(told, default=str))
    os._exit(1 if "error" in told else 0)


def main() -> None:
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from mlflow import MlflowClient  # noqa: F401

    from flows.promote import promote
    from flows.refresh import refresh
    from flows.rollback import rollback
    from tasks.opd.store.definitions import source_of
    from tasks.opd.training import round as training  # noqa: F401
    for module in [name for name in sys.modules if name.startswith("tasks.opd")]:
        source_of(module)
    flows = {"refresh": refresh, "promote": promote, "rollback": rollback}
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "told.json")
            if (child := os.fork()) == 0:
                perform(json.loads(line), flows, out)
            _, status = os.waitpid(child, 0)
            told = json.loads(out.read_text()) if out.exists() else {}
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), **told}), flush=True)


if __name__ == "__main__":
    main()
