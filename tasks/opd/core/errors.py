"""What can go wrong, each with the exit code that `opd` ends with and that a worker reports."""


class OpdError(Exception):
    """Something the user or operator can act on; the message says what was given, what is allowed and the way out."""
    exit_code = 1


class RecipeError(OpdError):
    """A recipe, suite or override is wrong."""
    exit_code = 10


class DataError(OpdError):
    """Prompts, rollouts or files are unfit for use."""
    exit_code = 11


class CorruptArtifact(DataError):
    """The bytes of an artifact are not those that were written."""


class TokenizerMismatch(OpdError):
    """Student and teacher do not share a vocabulary by ids."""
    exit_code = 12


class NonFinite(OpdError):
    """A loss, gradient or log-probability is NaN or infinite."""
    exit_code = 13


class DiskFull(OpdError):
    """No space, or no permission, where an artifact should be written."""
    exit_code = 14


class EngineError(OpdError):
    """An engine or worker died, hung or disagrees with the trainer."""
    exit_code = 20


class EngineLost(EngineError):
    """An engine or worker died, hung or ran out of memory: worth another try with half the batch."""


ERRORS = {cls.__name__: cls for cls in (OpdError, RecipeError, DataError, CorruptArtifact, TokenizerMismatch, NonFinite,
                                        DiskFull, EngineError, EngineLost)}
