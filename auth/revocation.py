"""Tokens ended before their time: one by its id, or all that a subject had."""

import math
import time
from collections.abc import Callable

from auth.principal import Principal
from storage.accounts import Accounts
from storage.models import Revocation

# Seconds. No token of the gate lives longer, so that a revocation need not be kept for ever.
LIFETIME_MAX = 366 * 86_400
# Seconds that a cut-off lies ahead: another node's clock may be, and a login may be half done.
MARGIN = 1


class Revocations:
    """What is revoked, in memory, as storage and the calls here made it known.

    `issuer`: the gate's own name; only its subjects are clients. `changed`: called after every
    change that may end a token. `lifetime`: the longest a token of the gate may live, in seconds.
    `clock`: seconds since 1970. `spread`: called with every revocation made here, to tell the others.
    """

    def __init__(
        self,
        accounts: Accounts,
        changed: Callable[[], None],
        *,
        issuer: str,
        lifetime: int = LIFETIME_MAX,
        clock: Callable[[], float] = time.time,
        spread: Callable[[Revocation], None] | None = None,
    ) -> None:
        self.lifetime = lifetime
        self._accounts = accounts
        self._changed = changed
        self._issuer = issuer
        self._clock = clock
        self._spread = spread
        self._tokens: dict[str, Revocation] = {}
        self._subjects: dict[str, Revocation] = {}

    def __len__(self) -> int:
        return len(self._tokens) + len(self._subjects)

    def is_revoked(self, principal: Principal) -> bool:
        """Whether the token of this principal has been ended."""
        if principal.token_id and self._token(principal.token_id, principal.issuer) in self._tokens:
            return True
        return principal.issuer == self._issuer and principal.issued <= self.cutoff(principal.subject)

    def cutoff(self, subject: str) -> int:
        """The second up to which the issued tokens of a subject have ended; 0 if none have."""
        found = self._subjects.get(subject)
        return 0 if found is None else found.cutoff

    async def revoke_token(self, jti: str, exp: float, issuer: str | None = None) -> None:
        """End the token with this id, kept until `exp`; `issuer`: whose it is, the gate's own by default.

        Errors: those of storage; then nothing is revoked.
        """
        id = self._token(jti, self._issuer if issuer is None else issuer)
        revocation = Revocation("token", id, 0, math.ceil(exp))
        await self._accounts.revoke(revocation)
        self._made(revocation)

    async def remove_client(self, id: str) -> None:
        """Remove a client and end its tokens. NotFound if there is none; errors of storage."""
        # Later than any cut-off before: a token issued since then starts right behind that one.
        cutoff = max(int(self._clock()) + MARGIN, self.cutoff(id) + 1)
        revocation = Revocation("subject", id, cutoff, cutoff + self.lifetime)
        await self._accounts.remove_client(id, revocation)
        self._made(revocation)

    async def refresh(self) -> None:
        """Learn what other workers revoked; to be called at the start and regularly. Errors of storage."""
        self._merge(await self._accounts.revocations())

    def learn(self, revocation: Revocation) -> None:
        """Take in what another process revoked, sooner than `refresh` would find it."""
        self._merge([revocation])

    def _made(self, revocation: Revocation) -> None:
        self._merge([revocation])
        if self._spread is not None:
            self._spread(revocation)

    def _merge(self, revocations: list[Revocation]) -> None:
        """Add to what is known. Never replace it: what was read may be older than the last call here."""
        now = self._clock()
        changed = False
        for revocation in revocations:
            kind = self._tokens if revocation.kind == "token" else self._subjects
            known = kind.get(revocation.id)
            if revocation.expires > now and (known is None or known.cutoff < revocation.cutoff):
                kind[revocation.id] = revocation
                changed = True
        for kind in (self._tokens, self._subjects):
            for id in [id for id, revocation in kind.items() if revocation.expires <= now]:
                del kind[id]
        if changed:
            self._changed()

    def _token(self, jti: str, issuer: str) -> str:
        """The id of a token among those of all issuers."""
        return jti if issuer == self._issuer else f"{issuer} {jti}"
