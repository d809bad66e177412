"""What a user can get wrong: each message says what was expected, what came, and the way out."""


class PyKinMLError(ValueError):
    """Base of the errors that the command line shows without a traceback (exit code 2)."""


class ConfigError(PyKinMLError):
    """A setting that cannot be used."""


class DataError(PyKinMLError):
    """A data file that cannot be used."""


class ModelError(PyKinMLError):
    """A model file that cannot be used, or used for this."""
