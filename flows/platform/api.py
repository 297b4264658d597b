"""Requests to the platform's own servers: JSON, basic auth, never through a proxy, for loopback is not the internet."""
import contextlib

import httpx

from flows.platform.settings import Settings


class Api:
    """One server. A request raises httpx.HTTPError when it is not answered, or answered with an error."""

    def __init__(self, url: str, auth: str = "", timeout_seconds: float = 30.0):
        credentials = tuple(auth.split(":", 1)) if auth else None
        self.client = httpx.Client(base_url=url, auth=credentials, timeout=timeout_seconds, trust_env=False,
                                   verify=False)  # it is http: to read certificates takes 40 ms

    def get(self, path: str, **parameters):
        """What a path holds."""
        return self._answer(self.client.get(path, params=parameters))

    def post(self, path: str, body: dict | None = None):
        """What a path answers to a body."""
        return self._answer(self.client.post(path, json=body or {}))

    def patch(self, path: str, body: dict):
        """What a path answers to changes."""
        return self._answer(self.client.patch(path, json=body))

    def put(self, path: str, body: dict):
        """What a path answers to what shall stand there."""
        return self._answer(self.client.put(path, json=body))

    def is_well(self, path: str) -> bool:
        """Whether a path answers with success."""
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get(path, timeout=5).is_success
        return False

    @staticmethod
    def _answer(received: httpx.Response):
        received.raise_for_status()
        return received.json() if received.content else None


def prefect(settings: Settings, timeout_seconds: float = 30.0) -> Api:
    """Prefect's API."""
    return Api(f"{settings.prefect_url}/api", settings.prefect_auth, timeout_seconds)


def mlflow(settings: Settings, timeout_seconds: float = 30.0) -> Api:
    """MLflow's API."""
    return Api(settings.mlflow_url, settings.mlflow_auth, timeout_seconds)
