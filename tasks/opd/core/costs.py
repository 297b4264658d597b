"""What work costs in tokens: under which names stages count them, and their sums. No torch.

written   completion tokens generated or supplied, by author, kept or not: drafts too long for the context, rollouts
          that a filter drops, originals that a refiner replaces, and SKD's rejected drafts are in it
read      completion tokens that a teacher or a reference scores, verifies, rewrites or mixes in; prompts are not
trained   tokens with a coefficient other than zero, in every pass over them
They are counted where they arise, so work done twice costs twice. For equal batch sizes they are equal in equal runs;
seconds, which are not, stand in `artifact.json` only. Left out: what a student reads, preflight's few prompts, and what
a stage had done before its worker was lost.
"""
from collections import Counter
from collections.abc import Iterable, Mapping

from tasks.opd.core.records import DATASET, STUDENT, TEACHER

WRITTEN = {STUDENT: "student_written_tokens", TEACHER: "teacher_written_tokens", DATASET: "dataset_written_tokens"}
BY_AUTHOR = {"student": WRITTEN[STUDENT], "teacher": WRITTEN[TEACHER], "dataset": WRITTEN[DATASET]}
READ, TRAINED = "teacher_read_tokens", "trained_tokens"
NAMES = (*WRITTEN.values(), READ, TRAINED)
SECONDS = "seconds"                     # in which stages were made; a currency, too
METERED = {
    "rollouts": (*WRITTEN.values(), READ),
    "refined": (WRITTEN[STUDENT], WRITTEN[TEACHER], READ),
    "scores": (READ,),
    "checkpoint": (TRAINED,),
    "report": (WRITTEN[STUDENT],),
    "divergence": (READ,),
}  # stage -> what its counts always say, zeros included


def counted(stage: str, spent: Mapping[str, int]) -> dict[str, int]:
    """The costs of a stage as its counts have them: all that it meters, 0 where nothing was spent."""
    assert spent.keys() <= set(METERED[stage]), f"{stage} does not meter {sorted(spent.keys() - set(METERED[stage]))}"
    return {name: spent.get(name, 0) for name in METERED[stage]}


def summed(stages: Iterable[tuple[str, Mapping]]) -> dict[str, int]:
    """Costs by name, summed over stages, given as (stage, its counts).

    What a stage meters and its counts lack is not known of the sum either, and is left out.
    """
    total, unknown = Counter(), set()
    for stage, counts in stages:
        for name in METERED.get(stage, ()):
            unknown |= {name} - counts.keys()
            total[name] += counts.get(name, 0)
    return {name: total[name] for name in NAMES if name not in unknown}
