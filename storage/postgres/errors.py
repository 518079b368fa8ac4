"""PostgreSQL's errors in the words of storage (SQLSTATE: appendix A of its documentation)."""

import psycopg2

from storage import errors

_STATES: dict[str, type[errors.StorageError]] = {
    "23505": errors.Conflict,
    # The statement was cancelled, by its timeout or by somebody: it does not say at which point.
    "57014": errors.Timeout,
    "53100": errors.Full,
    # Text search and indexes: a value that is too large for them.
    "54000": errors.Refused,
}
_CLASSES: dict[str, type[errors.StorageError]] = {
    "22": errors.Refused,
    "23": errors.Refused,
    # Connection, authorization, transaction state, rollback, resources, locks, the operator, the system.
    "08": errors.Unavailable,
    "28": errors.Unavailable,
    "25": errors.Unavailable,
    "40": errors.Unavailable,
    "53": errors.Unavailable,
    "54": errors.Unavailable,
    "55": errors.Unavailable,
    "57": errors.Unavailable,
    "58": errors.Unavailable,
    "XX": errors.Unavailable,
}
# The server ends the session with these: what it ran may have been committed a moment before.
_ENDING = ("57P01", "57P02", "57P04", "57P05", "25P03", "25P04")
# The session leads to a standby: a new one will look for the primary.
_MISLED = ("25006",)


def translate(error: Exception) -> errors.StorageError:
    """The storage error that says the same as an error of a statement that was sent.

    Timeout: the outcome is unknown, as when the connection was lost before the answer. A bare
    StorageError: the statement is wrong, and so is the program.
    """
    if isinstance(error, errors.StorageError):
        return error
    if isinstance(error, ValueError):
        # Text that UTF-8 or PostgreSQL cannot hold, found before anything was sent.
        return errors.Refused(f"the database cannot hold the value: {error}")
    state = error.pgcode if isinstance(error, psycopg2.Error) else None
    if state is None:
        if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError | psycopg2.DatabaseError):
            return errors.Timeout(
                f"the connection to the database was lost before its answer: {brief(error)}"
            )
        return errors.StorageError(f"the statement is wrong: {brief(error)}")
    if state in _ENDING:
        return errors.Timeout(f"the database ended the session before its answer: {brief(error)}")
    kind = _STATES.get(state) or _CLASSES.get(state[:2], errors.StorageError)
    return kind(f"the database says {state}: {brief(error)}")


def is_misled(error: Exception) -> bool:
    """Whether the error says that the session leads to a server that does not take writes."""
    return isinstance(error, psycopg2.Error) and error.pgcode in _MISLED


def brief(error: Exception) -> str:
    """The first line of an error; the rest repeats the statement."""
    return str(error).strip().partition("\n")[0]
