"""What can go wrong in storage, whatever the engine.

StorageError
 |- Unavailable      the database cannot be reached or is closing; try again
 |   '- Overloaded   the queue of waiting writes is full; try again
 |- Timeout          the database did not answer within the deadline
 |- Conflict         what exists already contradicts what was asked for
 |   |- KeyRunning   a write with the same idempotency key is not settled yet
 |   '- KeyReused    the idempotency key was used for another body
 |- NotFound         the named thing does not exist
 |- Refused          the database refuses this value; another try cannot help
 '- Full             no space left on the device
"""


class StorageError(Exception):
    """Base of all errors that storage raises."""


class Unavailable(StorageError):
    """The database cannot be reached now."""


class Overloaded(Unavailable):
    """More writes wait than the queue may hold."""


class Timeout(StorageError):
    """No answer within the deadline; a write may have happened or not."""


class Conflict(StorageError):
    """It exists already, with other content."""


class KeyRunning(Conflict):
    """A write with the same idempotency key is not settled yet."""


class KeyReused(Conflict):
    """The idempotency key was used for another body."""


class NotFound(StorageError):
    """It does not exist."""


class Refused(StorageError):
    """The database refuses this very value."""


class Full(StorageError):
    """The storage device is full; nothing was stored."""
