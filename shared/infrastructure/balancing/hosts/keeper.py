"""Who keeps hosts, as the hosts see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shared.infrastructure.balancing.accounting import Estimate, TokenUsage

if TYPE_CHECKING:
    from shared.infrastructure.balancing.hosts.host import Host


class Keeper(Protocol):
    """Whoever keeps hosts, and wants to know when one of them changes."""

    def changed(self) -> None:
        """Take note that some host may be called where it might not, or the reverse."""
        ...

    def filled(self, host: Host) -> None:
        """Take note that `host` has no room left."""
        ...

    def freed(self, host: Host) -> None:
        """Take note that a call to `host` is over."""
        ...

    def learn(self, model: str | None, estimate: Estimate, usage: TokenUsage) -> None:
        """Take note of what a call cost of which there was an estimate."""
        ...


class Nobody:
    """Keeps nothing: of a host that stands alone."""

    def changed(self) -> None:
        return

    def filled(self, host: Host) -> None:
        return

    def freed(self, host: Host) -> None:
        return

    def learn(self, model: str | None, estimate: Estimate, usage: TokenUsage) -> None:
        return
