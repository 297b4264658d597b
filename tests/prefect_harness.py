"""A Prefect server for the flows that a module's tests run in this process, and for the processes that they start."""
import contextlib

import pytest
from prefect.testing.utilities import prefect_test_harness

from tasks.server import WITHOUT_PAGES

PATIENCE_SECONDS = 600


@contextlib.contextmanager
def prefect_server():
    """Prefect's own harness, whose server leaves out at its start what a command's own leaves out too."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in WITHOUT_PAGES.items():
                patch.setenv(name, value)
            stack.enter_context(prefect_test_harness(server_startup_timeout=PATIENCE_SECONDS))
        yield
