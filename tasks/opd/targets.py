"""Which distribution is aimed at: log-probabilities by model name, [n, S] each, to log-probabilities [n, S]."""
from torch import Tensor


def teacher(logprobs: dict[str, Tensor], name: str) -> Tensor:
    """The teacher's own distribution; `name` is the model that the recipe's `teacher` means. [n, S] nats."""
    return logprobs[name]


TARGETS = {"teacher": teacher}
