"""`opd up`, `opd status`, `opd down`, `opd logs`: the servers, the worker, and what they do."""
import argparse
import os
import sys
import time
from datetime import UTC, datetime

from flows.platform import children, lifecycle, pools, servers, state
from flows.platform import settings as settings_of
from flows.platform.settings import PlatformError
from tasks.opd.core.tables import aligned
from tasks.opd.store.artifacts import home

FOLLOW_SECONDS = 0.5
BUSY_SLOTS = 4                          # with more runs at once than this, SQLite's one writer becomes the bottleneck


def add_up_options(parser: argparse.ArgumentParser) -> None:
    """The options of `opd up`."""
    parser.add_argument("--host", default="127.0.0.1", help="what both servers bind to; not loopback: needs passwords")
    parser.add_argument("--prefect-port", type=int, default=4200, metavar="N", help="4200; 0: any that is free")
    parser.add_argument("--mlflow-port", type=int, default=5000, metavar="N", help="5000; 0: any that is free")
    parser.add_argument("--database-url", default="", metavar="URL",
                        help=f"postgresql://user@host/name for both servers, or ${settings_of.DATABASE}; else SQLite")


def up(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Start the platform, and register what can be run."""
    started = time.monotonic()
    wanted = settings_of.asked_for(arguments.host, arguments.prefect_port, arguments.mlflow_port,
                                   arguments.database_url, pools.num_devices())
    settings, names = lifecycle.up(wanted)
    print(f"opd: {'started ' + ', '.join(names) if names else 'runs already'}; registering deployments",
          file=sys.stderr)
    deployed = deploy(settings)
    result = state.report() | {"started": names, "deployed": deployed, "seconds": round(time.monotonic() - started, 1)}
    number = sum(len(deployed[what]) for what in ("added", "updated", "unchanged"))
    lines = [table(result), "", f"Prefect  {settings.prefect_url}", f"MLflow   {settings.mlflow_url}",
             f"{number} deployments, {result['seconds']} s; `opd down` stops it"]
    lines += [f"not registered: {name}: {why}" for name, why in deployed["refused"].items()]
    if not settings.database_url and settings.slots > BUSY_SLOTS:
        lines.append(f"{settings.slots} runs at once write to one SQLite file: PostgreSQL is the better choice "
                     "(--database-url)")
    return result, "\n".join(lines)


def deploy(settings: settings_of.Settings) -> dict:
    """Register every deployment on the server that runs, in this process."""
    servers.become_client(settings)
    from flows.deployments import deploy as register
    return register(servers.POOL)


def status(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Say what runs."""
    result = state.report()
    return result, table(result)


def down(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Stop everything that the platform started."""
    started, number = time.monotonic(), lifecycle.down()
    seconds = round(time.monotonic() - started, 1)
    text = f"ended {number} processes in {seconds} s; nothing is left" if number else f"nothing ran under {home()}"
    return {"ended": number, "seconds": seconds}, text


def add_logs_options(parser: argparse.ArgumentParser) -> None:
    """The options of `opd logs`."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
    parser.add_argument("-n", "--lines", type=int, default=50, help="how many of the last lines; 50")


def logs(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Show what a child said last."""
    if arguments.name not in children.NAMES:
        raise PlatformError(f"there is no {arguments.name!r}; there are logs of {', '.join(children.NAMES)}")
    file, lines = children.log_of(arguments.name), children.last_lines(arguments.name, arguments.lines)
    if not file.exists():
        raise PlatformError(f"{arguments.name} has no log under {home()}; start the platform with opd up")
    if arguments.follow:
        print(lines, flush=True)
        follow(arguments.name)
    return {"log": str(file), "lines": lines.splitlines()}, lines


def follow(name: str) -> None:
    """Print what is added to a log, until interrupted; a log that is set aside is followed by the new one."""
    place = children.log_of(name).stat().st_size
    while True:
        time.sleep(FOLLOW_SECONDS)
        with open(children.log_of(name), "rb") as file:
            place = min(place, file.seek(0, os.SEEK_END))
            file.seek(place)
            sys.stdout.write(file.read().decode(errors="replace"))
            place = file.tell()
        sys.stdout.flush()


def table(result: dict) -> str:
    """The report as text."""
    if not result["children"]:
        return f"no platform runs under {result['home']}; start it with opd up"
    ports = {"prefect": result["prefect"], "mlflow": result["mlflow"]}
    rows = [("", "state", "pid", "since", "address")]
    rows += [(child["name"], child["state"], str(child["pid"] or "-"), local(child["since"]),
              ports.get(child["name"], "")) for child in result["children"]]
    lines = [*aligned(rows, words=rows[0], rule=False), "", f"home      {result['home']}, {result['database']}"]
    if "problem" in result:
        return "\n".join([*lines, f"problem   {result['problem']}"])
    runs, slots = result["runs"], result["slots"]
    lines += [f"slots     {slots['used']} of {slots['of']} used",
              f"runs      {len(runs['active'])} active, {runs['waiting']} waiting ({runs['late']} late), "
              f"{runs['scheduled']} scheduled"]
    lines += [f"active    {name}" for name in runs["active"]]
    lines += [f"next      {local(run['at'])}  {run['name']}" for run in result["next"]]
    if result["refreshes"]:
        rows = [("refresh", "last", "", "next", "champion")]
        rows += [(item["name"], item["last"]["state"] if item["last"] else "-",
                  local(item["last"]["at"]) if item["last"] else "", local(item["next"]),
                  f"version {item['champion']}" if item["champion"] else "-") for item in result["refreshes"]]
        lines += ["", *aligned(rows, words=rows[0], rule=False)]
    return "\n".join(lines)


def local(moment: str | None) -> str:
    """A time in this machine's zone, to the second."""
    if not moment:
        return "-"
    return datetime.fromisoformat(moment).replace(tzinfo=datetime.fromisoformat(moment).tzinfo or UTC).astimezone() \
        .strftime("%Y-%m-%d %H:%M:%S")
