"""The hosts of a pool: what the user says of each, what becomes of it, and which may be called."""

from shared.infrastructure.balancing.hosts.admission import Admission
from shared.infrastructure.balancing.hosts.config import (
    Capability,
    HostLimits,
    HostPolicy,
    LLMHost,
)
from shared.infrastructure.balancing.hosts.host import Host
from shared.infrastructure.balancing.hosts.line import RoomLine
from shared.infrastructure.balancing.hosts.obstacles import Obstacle, obstacle_of
from shared.infrastructure.balancing.hosts.roster import Roster, View
from shared.infrastructure.balancing.hosts.standing import HostState, Standing

__all__ = [
    # config.py
    "Capability",
    "HostLimits",
    "HostPolicy",
    "LLMHost",
    # standing.py
    "HostState",
    "Standing",
    # admission.py
    "Admission",
    # host.py
    "Host",
    # obstacles.py
    "Obstacle",
    "obstacle_of",
    # roster.py
    "Roster",
    "View",
    # line.py
    "RoomLine",
]
