"""Replicas of one server: requests go to those that answer, are tried again within bounds, and all succeed or none.

What may pass is tried again, at another replica first: a connection refused or broken, no answer in time, 408, 425,
429, 5xx, an answer of another shape than was asked for. A replica that failed rests, twice as long each time, and is
asked again: while patience lasts where it refuses connections, else up to `tries` times. Before its first request, and
after it failed or was silent for a while, a replica must show that it is who it was: `welcome`. Every other 4xx, 501
and 505 say that the request is wrong, and end all. The key is sent and never said.
httpx runs on an event loop of its own thread, so that whatever hangs can be dropped. Left out: streams, and asking two
at once to take the faster.
"""
import asyncio
import email.utils
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tasks.opd.core.errors import EngineError, EngineLost

PASSING = {408, 425, 429}     # of the 4xx, those that say: later
NEVER = {501, 505}            # of the 5xx, those that say: not here
LONGEST_REST_SECONDS = 30.0
WELCOME_SECONDS = 60.0        # a replica that takes longer over the few tokens of its welcome hangs
KNOWN_SECONDS = 10.0          # after an answer; a server that starts again with another model takes longer


class Declined(EngineError):
    """A replica says that the request is wrong."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Fault(Exception):
    """What may pass; `rest_seconds` is what the server asks for (Retry-After), `sent` whether anything reached it."""

    def __init__(self, message: str, rest_seconds: float = 0.0, *, sent: bool = True):
        super().__init__(message)
        self.rest_seconds, self.sent = rest_seconds, sent


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked, and how the answer is read: KeyError, IndexError, TypeError, ValueError say it is misshapen."""
    path: str
    read: Callable[[Any], Any]
    body: dict | None = None              # None: GET


@dataclass(kw_only=True)
class Replica:
    """One server."""
    url: str
    known_until: float = 0.0              # monotonic seconds, as all below: no welcome is needed before
    in_flight: int = 0
    faults: int = 0                       # in a row
    tried: int = 0                        # of them, those that reached it
    rested_at: float = 0.0
    rests_until: float = 0.0
    door: asyncio.Lock = field(default_factory=asyncio.Lock)


class Replicas:
    """Asks replicas. A request that fails ends its batch: after `patience_seconds`, `tries` of its own, or when every
    replica failed `tries` times in a row; refused connections do not count as tries.
    """

    def __init__(self, urls: list[str], key: str = "", *, concurrency: int = 64, timeout_seconds: float = 600,
                 patience_seconds: float = 900, tries: int = 16, backoff_seconds: float = 0.5,
                 known_seconds: float = KNOWN_SECONDS):
        import httpx
        self.secret, self.jitter = secret_of(key), random.Random()  # unseeded: it moves pauses, never results
        self.key, self.concurrency, self.timeout_seconds = key, concurrency, timeout_seconds
        self.patience_seconds, self.tries, self.backoff_seconds = patience_seconds, tries, backoff_seconds
        self.known_seconds = known_seconds
        self.replicas = [Replica(url=url.rstrip("/").removesuffix("/v1")) for url in urls]
        self.welcome: list[Request] = []
        self.recognise: Callable[[list], None] = lambda answers: None  # raises where those to `welcome` are wrong
        self.client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {self.secret}"} if self.secret else {},
            timeout=httpx.Timeout(None, connect=min(10.0, timeout_seconds)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency))
        self.passing = (httpx.RequestError, TimeoutError)
        self.refused = (httpx.ConnectError, httpx.ConnectTimeout)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="replicas", daemon=True)
        self.thread.start()

    def ask(self, request: Request) -> Any:
        """What `request.read` makes of an answer. Raises: EngineLost, Declined, and whatever `read` finds wrong."""
        return self.ask_all([request])[0]

    def ask_all(self, requests: list[Request], progress=None) -> list[Any]:
        """All answers, in the requests' order, or an error; `progress` counts them. Raises: as `ask`."""
        return self._run(self._all(requests, progress))

    def close(self) -> None:
        """Drop the connections; nothing can be asked afterwards."""
        if not self.loop.is_closed():
            self._run(self.client.aclose())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    def _run(self, coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C too: nothing is left to run on
            future.cancel()
            raise

    async def _all(self, requests: list[Request], progress) -> list[Any]:
        gate = asyncio.Semaphore(self.concurrency)
        for replica in self.replicas:  # a batch begins anew
            replica.faults, replica.tried, replica.rests_until = 0, 0, 0.0

        async def one(request: Request) -> Any:
            async with gate:
                answer = await self._ask(request)
            if progress is not None:
                progress.update(1)
            return answer
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(request)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, request: Request) -> Any:
        """The first good answer."""
        began, last, said, tried = time.monotonic(), None, "no replica was ready to be asked", 0
        try:
            async with asyncio.timeout(self.patience_seconds):
                while tried < self.tries and min(r.tried for r in self.replicas) < self.tries:
                    last = await self._ready(last)
                    try:
                        return await self._once(last, request)
                    except Fault as fault:
                        said, tried = f"{last.url} {fault}" if str(fault) else said, tried + fault.sent
        except TimeoutError:
            said += f"; patience is {self.patience_seconds:g} s"
        raise EngineLost(self._hide(
            f"no answer to {request.path} in {tried} tries and {time.monotonic() - began:.0f} s from "
            f"{', '.join(r.url for r in self.replicas)}; the last: {said}. Nothing was kept of the batch. Look at the "
            "server's log, start it again or name another in the pair's `urls`, then run again"))

    async def _ready(self, last: Replica | None) -> Replica:
        """The least busy of the replicas that do not rest, another than the `last` where there is one."""
        while not (awake := [r for r in self.replicas if r.rests_until <= time.monotonic()]):
            await asyncio.sleep(max(0.001, min(r.rests_until for r in self.replicas) - time.monotonic()))
        return min([r for r in awake if r is not last] or awake, key=lambda r: r.in_flight)

    async def _once(self, replica: Replica, request: Request) -> Any:
        """The answer of a replica that is who it was; it rests after a Fault."""
        asked, replica.in_flight = time.monotonic(), replica.in_flight + 1
        try:
            async with replica.door:  # one sees to the welcome, the others wait for it
                if replica.rested_at >= asked:
                    raise Fault("", sent=False)  # it went to rest meanwhile, for what is said already
                if replica.known_until <= time.monotonic():
                    bound = min(WELCOME_SECONDS, self.timeout_seconds)
                    self.recognise([await self._send(replica, check, bound) for check in self.welcome])
                replica.known_until = time.monotonic() + self.known_seconds
            answer = await self._send(replica, request, self.timeout_seconds)
            replica.faults, replica.tried, replica.known_until = 0, 0, time.monotonic() + self.known_seconds
            return answer
        except Fault as fault:
            self._rest(replica, asked, fault)
            raise
        finally:
            replica.in_flight -= 1

    def _rest(self, replica: Replica, asked: float, fault: Fault) -> None:
        """Send a replica to rest, once for all that was asked of it before."""
        replica.known_until = 0.0
        if asked <= replica.rested_at:
            return
        replica.faults, replica.tried = replica.faults + 1, replica.tried + fault.sent
        replica.rested_at = time.monotonic()
        wait = min(LONGEST_REST_SECONDS, self.backoff_seconds * 2 ** (replica.faults - 1))
        replica.rests_until = replica.rested_at + max(fault.rest_seconds, wait * self.jitter.uniform(0.75, 1.25))
        if replica.faults == 1:
            print(f"opd: {replica.url} {fault}; asking again, for {self.patience_seconds:g} s at most", file=sys.stderr)

    async def _send(self, replica: Replica, request: Request, timeout_seconds: float) -> Any:
        """One request and what is read from its answer. Raises: Fault, Declined, and whatever `read` finds wrong."""
        try:
            async with asyncio.timeout(timeout_seconds):  # of the whole answer, however slowly it drips
                answer = await self.client.request("GET" if request.body is None else "POST",
                                                   replica.url + request.path, json=request.body)
        except self.passing as error:
            late = isinstance(error, TimeoutError)
            message = f"has not answered in {timeout_seconds:g} s" if late else f"{type(error).__name__}: {error}"
            raise Fault(self._hide(message), sent=not isinstance(error, self.refused)) from None
        if answer.status_code in PASSING or answer.status_code >= 500 and answer.status_code not in NEVER:
            raise Fault(f"answers {answer.status_code}: {self._said(answer)}",
                        seconds_of(answer.headers.get("retry-after")))
        if answer.status_code != 200:
            raise Declined(f"{replica.url}{request.path} answers {answer.status_code}: "
                           f"{self._said(answer)}{self._way_out(answer.status_code)}", answer.status_code)
        try:
            return request.read(json.loads(answer.content))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            message = self._hide(f"({type(error).__name__}: {error})")
            raise Fault(f"answers what was not asked for {message}: {self._said(answer)}") from None

    def _way_out(self, status: int) -> str:
        if status != 401:
            return ""
        return f"; {variable(self.key)} holds another key than the server's" if self.key else \
            "; set `key` to the name of the environment variable that holds the server's key"

    def _said(self, answer) -> str:
        """The beginning of an answer; the key is hidden first, for half a key would not be found."""
        return " ".join(self._hide(answer.text).split())[:300]

    def _hide(self, text: str) -> str:
        return text.replace(self.secret, "***") if self.secret else text


def variable(key: str) -> str:
    """`the environment variable OPD_TEACHER_KEY`; its name is left out where it may be a key."""
    return f"the environment variable {key if key.endswith(('_KEY', '_TOKEN', '_SECRET')) else 'that `key` names'}"


def secret_of(key: str) -> str:
    """What the environment variable `key` holds; "" where none is needed. Raises EngineError if it cannot be sent."""
    if not key:
        return ""
    if not key.startswith("OPD_"):  # a recipe from elsewhere must not send other keys to a server of its own
        raise EngineError("`key` of a server must name an environment variable that begins with OPD_, such as "
                          "OPD_TEACHER_KEY: export the server's key under such a name")
    secret = os.environ.get(key, "").strip()
    if not secret:
        raise EngineError(f"{variable(key)} is not set: export the server's API key in it, where the "
                          "worker starts, or save it as a Prefect Secret named alike (opd-some-key for OPD_SOME_KEY); "
                          "or leave `key` empty for a server that asks for none")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise EngineError(f"what {variable(key)} holds cannot be sent as a key: it has blanks or characters beyond "
                          "ASCII")
    return secret


def seconds_of(retry_after: str | None) -> float:
    """Retry-After: seconds, or a date."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
