"""Who is calling: a verified token, as the rest of the gate sees it."""

from enum import IntFlag

from msgspec import Struct

from auth.grants import Grants


class Scope(IntFlag):
    """What kind of thing a token may do; one bit each so that a check is one operation."""

    NONE = 0
    READINGS_WRITE = 1
    READINGS_READ = 2
    DEVICES_WRITE = 4
    DEVICES_READ = 8
    ADMIN = 16


SCOPES = {
    "readings:write": Scope.READINGS_WRITE,
    "readings:read": Scope.READINGS_READ,
    "devices:write": Scope.DEVICES_WRITE,
    "devices:read": Scope.DEVICES_READ,
    "admin": Scope.ADMIN,
}


class Principal(Struct, frozen=True):
    """A verified token. `issued`, `expires`: seconds since 1970. `token_id`: its jti, may be "".

    `account`: what limits and idempotency keys are kept under, another one for each subject of each
    issuer.
    """

    subject: str
    issuer: str
    account: str
    scopes: Scope
    grants: Grants
    token_id: str
    issued: float
    expires: float


ANONYMOUS = Principal("", "", "", Scope.NONE, Grants(()), "", 0.0, 0.0)
