"""The base of every error that a user can mend, which the command line prints as one message. No part's own errors."""


class JaxalignError(Exception):
    """Something given to jaxalign cannot be used; says what was got, what was expected, and the remedy."""


class MissingPackageError(JaxalignError, ModuleNotFoundError):
    """An optional package is not installed; names the extra that brings it."""
