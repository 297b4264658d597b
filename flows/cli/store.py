"""What `opd gc` finds and removes: artifacts that no recorded run refers to."""
import argparse
from dataclasses import asdict

from tasks.opd.store import garbage
from tasks.opd.store.artifacts import home
from tasks.opd.store.garbage import Survey, readable_size


def age(text: str) -> float:
    """An age in seconds, as argparse asks for it."""
    try:
        return garbage.seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--delete", action="store_true", help="remove it; without this, it is only listed")
    parser.add_argument("--older-than", metavar="AGE", type=age, default=0.0, help="only what is older: 12h, 7d, 2w")
    parser.add_argument("--forget", metavar="RUN", action="append", default=[],
                        help="also give up a run, or a suite, by name; * stands for anything; may be repeated")


def gc(arguments: argparse.Namespace) -> tuple[dict, str]:
    """List, or remove, what no recorded run refers to."""
    found = garbage.survey(forget=arguments.forget, older_than_seconds=arguments.older_than)
    left = garbage.collect(found) if arguments.delete else found.garbage
    freed = sum(item.num_bytes for item in found.garbage) - sum(item.num_bytes for item in left)
    result = {"home": str(home()), "runs": sorted({record.name for record in found.runs}),
              "forgotten": sorted({record.name for record in found.forgotten}),
              "kept": {"number": found.num_kept, "bytes": found.kept_bytes},
              "garbage": [asdict(item) for item in found.garbage], "left": len(left), "freed_bytes": freed}
    return result, "\n".join([*lines(found), ending(found, len(left), freed, deleted=arguments.delete)])


def lines(found: Survey) -> list[str]:
    """What is kept, and what may go, by kind and in total."""
    at_work = f", {found.num_at_work} at work" if found.num_at_work else ""
    rows = [("kept", found.num_kept, found.kept_bytes),
            *((what, *sums) for what, sums in garbage.totals(found.garbage).items()),
            ("garbage", len(found.garbage), sum(item.num_bytes for item in found.garbage))]
    return [f"{home()}, recorded runs: {len(found.runs)}{at_work}",
            *(f"forgotten     {record.name}" for record in found.forgotten),
            *(f"{what:<14}{number:>7,}  {readable_size(num_bytes):>9}" for what, number, num_bytes in rows)]


def ending(found: Survey, num_left: int, freed: int, *, deleted: bool) -> str:
    """What was done, or can be."""
    if not found.garbage:
        return "there is nothing to remove"
    if not deleted:
        return "nothing was removed; --delete removes it"
    return f"{readable_size(freed)} freed" + (f"; {num_left} in use and left" if num_left else "")
