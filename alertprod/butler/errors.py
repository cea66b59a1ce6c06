"""Errors at the border: those of Rubin's middleware become ours, and in a quantum ours become its.

Its `NoWorkFound` is a BaseException, which passes every ``except Exception`` on its way: outside of a quantum nobody
would catch it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc
from lsst.daf.butler import (
    ButlerUserError,
    DatasetNotFoundError,
    DatasetTypeNotSupportedError,
    MissingDatasetTypeError,
)
from lsst.daf.butler.registry import CollectionError, ConflictingDefinitionError, DataIdError, DatasetTypeError
from lsst.pipe.base import NoWorkFound as RubinNoWorkFound
from lsst.pipe.base import RepeatableQuantumError

from alertprod.errors import (
    AlertprodError,
    ConfigError,
    DatasetExists,
    DatasetMismatch,
    ImageNotYetAvailable,
    NoWorkFound,
    StoreUnavailable,
    TransientError,
)
from alertprod.store.files import translated_errors as translated_file_errors


@contextmanager
def translated_errors(dataset: str, *, repository: str = "butler", collection: str = "") -> Iterator[None]:
    """Turn what the middleware raises about a dataset into errors of this package; these pass through.

    Parameters
    ----------
    dataset
        Type and data id, for messages.
    repository, collection
        Where it was sought, or was to be stored.

    Raises
    ------
    ImageNotYetAvailable
        Raised if there is no such dataset, or its file is gone.
    DatasetMismatch
        Raised if there is no such dataset type, it is of another kind, or the data id lacks a dimension or has a wrong one.
    DatasetExists
        Raised if it is there already and was to be stored.
    ConfigError
        Raised if there is no such collection, or it does not take datasets.
    StoreUnavailable
        Raised if the database is locked or away, or the disk does not answer.
    NoWorkFound
        Raised if the middleware finds nothing to do.
    """
    try:
        yield
    except AlertprodError:
        raise
    except RubinNoWorkFound as error:
        raise NoWorkFound(f"{dataset}: {error}") from error
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise ImageNotYetAvailable(dataset) from error
    except MissingDatasetTypeError as error:
        raise DatasetMismatch(dataset, f"{repository} has no such dataset type") from error
    except CollectionError as error:
        raise ConfigError(repository, "collections", first_line(error)) from error
    except ConflictingDefinitionError as error:
        raise DatasetExists(dataset, collection or repository) from error
    except (DatasetTypeError, DatasetTypeNotSupportedError, DataIdError) as error:
        raise DatasetMismatch(dataset, first_line(error)) from error
    except sqlalchemy.exc.OperationalError as error:
        raise StoreUnavailable(f"{repository}: {first_line(error.orig or error)}") from error
    except OSError:
        with translated_file_errors(dataset):
            raise
    except ButlerUserError as error:
        raise DatasetMismatch(dataset, first_line(error)) from error
    except (ValueError, TypeError, RuntimeError) as error:
        # What a formatter raised, or a disk under it, comes wrapped.
        if isinstance(error.__cause__, AlertprodError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, OSError):
            with translated_file_errors(dataset):
                raise error.__cause__ from error
        raise


@contextmanager
def quantum_errors() -> Iterator[None]:
    """Say in a quantum what became of it as its executor understands it.

    Raises
    ------
    lsst.pipe.base.NoWorkFound
        Raised for our `NoWorkFound`: the quantum counts as done, without outputs.
    lsst.pipe.base.RepeatableQuantumError
        Raised for a `TransientError`: running it again may help.

    Notes
    -----
    All other errors stay what they are: the executor counts the quantum as failed and logs them.
    """
    try:
        yield
    except NoWorkFound as error:
        raise RubinNoWorkFound(str(error)) from error
    except TransientError as error:
        raise RepeatableQuantumError(f"{type(error).__name__}: {error}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; quotes of a KeyError are not part of it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.strip().partition("\n")[0] or type(error).__name__
