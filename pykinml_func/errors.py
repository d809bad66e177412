"""What a user can get wrong: each message says what was expected, what came, and the way out."""


class PyKinMLError(ValueError):
    """Base of the errors that the command line shows without a traceback (exit code 2)."""


class ConfigError(PyKinMLError):
    """A setting that cannot be used."""


class ContradictionError(ConfigError):
    """Settings that exclude each other."""

    def __init__(self, message: str, either: tuple[str, ...], given: tuple[str, ...] = ()) -> None:
        """Of `either` one would have to go; `given` are those that it hangs on.

        What a file says of `either` gives way where one of all these is typed.
        """
        super().__init__(message)
        self.either, self.given = either, given


class DataError(PyKinMLError):
    """A data file that cannot be used."""


class ElementError(DataError):
    """Atoms of elements that are not among those asked for."""


class ModelError(PyKinMLError):
    """A model file that cannot be used, or used for this."""


class ExtrapolationError(PyKinMLError):
    """A structure beyond what the model was trained on, where that was to be an error."""


class ExtrapolationWarning(UserWarning):
    """A structure beyond what the model was trained on."""


class RankError(PyKinMLError):
    """What ended one of several ranks, and with it all of them."""


class PeerFailedError(PyKinMLError):
    """Another rank failed, and has said why."""
