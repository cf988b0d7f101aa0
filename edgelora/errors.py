"""The errors that a person can cause and mend; the command line turns each into exit status 2."""


class EdgeLoraError(Exception):
    """Something outside the program is wrong: the message names what, where and the remedy."""


class BundleError(EdgeLoraError):
    """A bundle is missing, damaged, or of a version that this runtime does not read."""


class AdapterError(EdgeLoraError):
    """An adapter is damaged, has another shape, or was trained against another base model."""


class StoreError(EdgeLoraError):
    """The adapter store cannot do what was asked: a bad name, a missing version, a held lock."""


class StoreWarning(UserWarning):
    """The store found damage and went on without it."""


class DataError(EdgeLoraError):
    """Training or prediction data cannot be used; names the file and the line."""


class ConfigError(EdgeLoraError):
    """Settings contradict each other, the bundle or the data."""


class TrainingError(EdgeLoraError):
    """Training cannot go on: the loss diverged, the state belongs to another run."""


class ConversionError(EdgeLoraError):
    """A source model cannot be converted; names the nodes, operators and what remains possible."""
