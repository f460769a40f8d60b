"""What `http_client` compares: which clients, at what, and how much of it at the same time."""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks import chat_contenders, http_contenders


class Bar(NamedTuple):
    """How much of a peer's processor time ours may take, by concurrency; none only compares."""

    ours: str
    peer: str
    most: Mapping[int, float]


class Section(NamedTuple):
    """Clients that do the same, and how much of it at the same time.

    Attributes:
        title: What they do.
        module: Where they are defined.
        arms: Which of them take part.
        path: What they ask for.
        seconds: How long a turn is, by concurrency.
        bars: What is asked of ours.
    """

    title: str
    module: str
    arms: tuple[str, ...]
    path: str
    seconds: dict[int, float]
    bars: list[Bar]


HTTP1 = tuple(arm for arm in http_contenders.ARMS if "HTTP/2" not in arm)
LOADS = (1, 10, 100, 1_000)
GET = Section(
    title="GET of 200 bytes",
    module="benchmarks.http_contenders",
    arms=tuple(http_contenders.ARMS),
    path="/json",
    seconds=dict.fromkeys(LOADS, 0.25),
    bars=[
        Bar("ours on httpx", "httpx + our wire", dict.fromkeys(LOADS, 1.05)),
        Bar("ours on httpx2", "httpx2 + our wire", dict.fromkeys(LOADS, 1.05)),
        Bar("ours on httpx, every layer", "httpx + our wire", {}),
        Bar("ours on httpx2, every layer", "httpx2 + our wire", {}),
        Bar("ours on httpx", "httpx", {1: 0.6, 10: 0.5, 100: 0.2}),
        Bar("ours on httpx2", "httpx", {1: 0.5, 10: 0.4, 100: 0.15}),
        Bar("ours on httpx2", "httpx2", {}),
        Bar("ours on httpx, HTTP/2", "httpx, HTTP/2", dict.fromkeys(LOADS, 1.05)),
        Bar("ours on httpx2, HTTP/2", "httpx2, HTTP/2", dict.fromkeys(LOADS, 1.05)),
        Bar("ours on httpx, HTTP/2", "httpx + our wire, HTTP/2", dict.fromkeys(LOADS, 1.05)),
        Bar("ours on httpx2, HTTP/2", "httpx2 + our wire, HTTP/2", dict.fromkeys(LOADS, 1.05)),
    ],
)
SLOW = Section(
    title="The same from a service that takes 100 ms",
    module="benchmarks.http_contenders",
    arms=HTTP1,
    path="/slow",
    seconds={100: 0.7},
    bars=[],
)
CHAT = Section(
    title="Chat completion",
    module="benchmarks.chat_contenders",
    arms=tuple(chat_contenders.ARMS),
    path="/v1/chat/completions",
    seconds=dict.fromkeys((1, 10, 100), 0.25),
    bars=[
        Bar(ours, peer, dict.fromkeys((1, 10, 100), most) if most else {})
        for peer, most in {
            "openai": 0.5,
            "litellm Router, 1 host": 0.125,
            "litellm Router, 3 hosts": 0.125,
            "tenacity + aiobreaker + aiolimiter": None,
        }.items()
        for ours in ("ours on httpx", "ours on httpx2")
    ],
)
