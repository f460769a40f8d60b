"""Which hosts of a pool may be called at the moment."""

from __future__ import annotations

from collections.abc import Sequence

from shared.infrastructure.balancing.hosts import Host
from shared.infrastructure.resilience import (
    CircuitState,
    CircuitStateChanged,
    Clock,
    ConfigurationError,
    Event,
)


class Roster:
    """The hosts, sorted by whether something speaks against calling them.

    While nothing does, asking costs nothing, however many there are: only a host whose circuit
    opened, or that asked for patience, gets a second look.

    Args:
        clock: Source of monotonic time.

    Attributes:
        hosts: All hosts by name.
    """

    def __init__(self, clock: Clock) -> None:
        self.hosts: dict[str, Host] = {}
        self._clock = clock
        self._suspects: set[str] = set()
        self._well: tuple[Host, ...] = ()

    def add(self, host: Host) -> None:
        """Take a host in.

        Raises:
            ConfigurationError: There is one of this name.
        """
        if host.name in self.hosts:
            raise ConfigurationError(f"host names must be unique: there are two {host.name!r}")
        self.hosts[host.name] = host
        self._sort()

    def usable(self) -> tuple[Sequence[Host], Sequence[Host]]:
        """Return the hosts that may be called, and those that may but asked for patience."""
        if not self._suspects:
            return self._well, ()
        now = self._clock.now()
        suspects = [self.hosts[name] for name in self._suspects]
        if any(not host.is_suspect(now) for host in suspects):
            suspects = [host for host in suspects if host.is_suspect(now)]
            self._suspects = {host.name for host in suspects}
            self._sort()
        usable = [host for host in suspects if host.enabled and not host.is_open]
        throttled = [host for host in usable if host.throttled_until > now]
        probed = [host for host in usable if host.throttled_until <= now]
        return (*self._well, *probed), throttled

    def enable(self, name: str, enabled: bool) -> None:
        """Say whether a host may be given new calls."""
        if name not in self.hosts:
            raise ConfigurationError(f"no host {name!r}: the hosts are {', '.join(self.hosts)}")
        self.hosts[name].enabled = enabled
        self._sort()

    def throttle(self, host: Host, seconds: float) -> None:
        """Leave a host in peace for a while, as it asked for, if there are others."""
        host.throttled_until = max(host.throttled_until, self._clock.now() + seconds)
        self._suspect(host.name)

    def on_event(self, event: Event) -> None:
        """Take note of circuits that are not closed; a listener."""
        if isinstance(event, CircuitStateChanged) and event.new != CircuitState.CLOSED:
            self._suspect(event.service)

    def _suspect(self, name: str) -> None:
        self._suspects.add(name)
        self._sort()

    def _sort(self) -> None:
        # A new tuple each time: whoever holds the old one goes on undisturbed.
        self._well = tuple(
            host for host in self.hosts.values() if host.enabled and host.name not in self._suspects
        )
