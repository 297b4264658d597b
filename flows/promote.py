"""Make a version of a refresh's model the champion: by hand, or by a refresh whose gate passed."""
from prefect import flow

from tasks.registry import move_champion
from tasks.tracking.registry import ANY


@flow(flow_run_name="{name}-{version}", persist_result=False)
def promote(name: str, version: str, approved_by: str, reason: str, over: str = ANY) -> dict:
    """The alias `champion` moves to a version whose gate passed, and opd.champion.promoted is emitted.

    `over` is the champion that it replaces (empty: there is none yet); with another one by now it is refused.
    """
    champion = move_champion(name, version, by=approved_by, reason=reason, over=over)
    return {"name": name, "version": champion.number, "folder": champion.tags["folder"],
            "over": champion.tags["promoted_over"], "approved_by": champion.tags["approved_by"]}
