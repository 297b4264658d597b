"""A command in a process of its own, with Prefect's server of its own: `python -m tests.platform.commands_for_tests`.

A suite of one cell with four rounds, each a task with a point. After the first two it makes the file $STOPPED and waits
until it is gone, where that is named. Prints how the flow ended.
"""
import os
import time
from pathlib import Path
from types import SimpleNamespace

from flows.cli.runs import prepare

ROUNDS = 4


def main() -> None:
    """Run the flow."""
    prepare(SimpleNamespace(verbose=False))
    from prefect import flow, task

    from tasks.stage import run_stage
    from tasks.tracking.runs import log_artifact, run_for, suite_for
    from tasks.workers import pools
    from tests.tracked_runs import NUMBERS, recipe

    @task
    def one_round(pool, index: int):
        return log_artifact(run_stage(NUMBERS, {"count": 3 + index}, {}, pool), f"{index:04d}", step=index + 1)

    @flow(name="command", persist_result=False)
    def command() -> str:
        with pools.for_run(SimpleNamespace(workers="inline")) as pool, suite_for("small") as study:
            with run_for(recipe(), "small"):
                for index in range(ROUNDS):
                    one_round(pool, index)
                    if index == 1 and "STOPPED" in os.environ:
                        pause(Path(os.environ["STOPPED"]))
            study.show({}, "| a |", numbers={"final/reward_mean": 0.5})
        return "ended well"
    print(command())


def pause(file: Path) -> None:
    """Make a file and wait until it is removed."""
    file.touch()
    while file.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    main()
