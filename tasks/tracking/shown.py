"""What stands on a run's page beside its points, for that of before: a note, numbers and tags."""
import time
from dataclasses import dataclass, field

from tasks.tracking.client import entities
from tasks.tracking.shipping import send_points


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What `Run.show` was given; as plain data it is kept in the run's state."""
    note: str = ""                                          # Markdown, the last of the description
    numbers: dict[str, float] = field(default_factory=dict)
    step: int = 0                                           # of the numbers: rounds finished
    tags: dict[str, str] = field(default_factory=dict)

    def new_numbers(self, client, run: str, known: dict) -> dict[str, float]:
        """Those numbers which do not stand on a run's page: neither `known` to, nor sent by anybody else."""
        before = known.get("numbers", {})
        new = {key: value for key, value in self.numbers.items() if before.get(key) != value}
        held = client.get_run(run).data.metrics if new else {}
        return {key: value for key, value in new.items() if held.get(key) != value}

    def says_more(self, client, run: str, known: dict) -> bool:
        """Whether it says anything that a run's page does not; where nothing is `known` of that, numbers tell."""
        noted = known and (known["note"], known.get("tags", {})) != (self.note, self.tags)
        return bool(noted or self.new_numbers(client, run, known))

    def send(self, client, run: str, known: dict) -> bool:
        """Send numbers and tags that are not there; whether there were such numbers."""
        now, new = int(time.time() * 1000), self.new_numbers(client, run, known)
        send_points(client, run, [{"key": key, "value": value, "step": self.step, "timestamp": now}
                                  for key, value in new.items()])
        if self.tags != known.get("tags", {}):
            client.log_batch(run, tags=[entities().RunTag(*item) for item in self.tags.items()])
        return bool(new)
