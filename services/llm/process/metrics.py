"""What the process counts beside its requests, and what the pool has to show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from shared.infrastructure.balancing import DistributedLLMClient
from shared.infrastructure.balancing.accounting import TokenUsage
from shared.infrastructure.balancing.call import Attempt, Call
from shared.infrastructure.balancing.classify import fault_of
from shared.infrastructure.balancing.hosts import HostState
from shared.infrastructure.resilience import CircuitState, MissingExtraError
from shared.infrastructure.server.metrics import Histogram, counter

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ImportError as exc:
    raise MissingExtraError("the LLM process", "server") from exc

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the histograms: from a word out of a cache to a long thought."""

_PER_HOST = {
    "attempts": ("request_count", "Requests sent to a host"),
    "attempt_errors": ("error_count", "Requests sent to a host that failed"),
}


class LLMMetrics:
    """Tokens, first tokens and errors, as clients saw them; the rest is read from the pool.

    Labels are of closed sets: paths of the table of routes, names of hosts and of API keys, faults.

    Args:
        client: Whose counters are shown.
        names: What the client of each API key is called.
    """

    def __init__(self, client: DistributedLLMClient, names: Mapping[str, str]) -> None:
        self._client = client
        self._names = names
        self._errors: Counter[str] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._first_tokens: dict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.in_flight = 0

    def count_fault(self, outcome: httpx.Response | BaseException) -> None:
        """Count a request by what went wrong with it, if anything did."""
        fault = fault_of(outcome)
        if fault is not None:
            self._errors[fault.value] += 1

    def count_answer(self, route: str, tenant: str, call: Call, attempt: Attempt) -> None:
        """Count what an answer, now over, has cost and how soon it began."""
        if attempt.first_token_at is not None:
            self._first_tokens[route].observe(attempt.first_token_at - call.began)
        usage = TokenUsage.of(attempt.usage)
        if usage is not None:
            name = self._names.get(tenant, "default")
            self._tokens[name, "input"] += usage.input
            self._tokens[name, "output"] += usage.output

    def families(self) -> Iterator[Metric]:
        """Yield all of it for Prometheus."""
        metrics = self._client.get_metrics()
        totals = metrics["totals"]
        yield counter("llm_errors", "Requests that ended in an error", "fault", self._errors)
        yield CounterMetricFamily(
            "llm_failovers", "Attempts that went on to another host", totals["failover_count"]
        )
        yield CounterMetricFamily(
            "llm_hedges", "Requests that were late and sent twice", totals["hedged_count"]
        )
        yield GaugeMetricFamily("llm_in_flight", "Requests being answered", self.in_flight)
        tokens = CounterMetricFamily(
            "llm_tokens", "Tokens by client, read and written", labels=["client", "kind"]
        )
        for labels, count in self._tokens.items():
            tokens.add_metric(list(labels), count)
        yield tokens
        firsts = HistogramMetricFamily(
            "llm_first_token_seconds", "Time to the first content of an answer", labels=["route"]
        )
        for route, histogram in self._first_tokens.items():
            histogram.add_to(firsts, [route])
        yield firsts
        yield from _hosts(metrics["hosts"])


def _hosts(hosts: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    for name, (key, text) in _PER_HOST.items():
        yield counter(
            f"llm_host_{name}", text, "host", {host: each[key] for host, each in hosts.items()}
        )
    for name, text in (("in_flight", "Requests under way"), ("weight", "Share of the work")):
        family = GaugeMetricFamily(f"llm_host_{name}", f"{text} at a host", labels=["host"])
        for host, each in hosts.items():
            family.add_metric([host], each[name])
        yield family
    states = GaugeMetricFamily(
        "llm_host_state", "1 for the state a host is in", labels=["host", "state"]
    )
    circuits = GaugeMetricFamily(
        "llm_host_circuit", "1 for the state its breaker is in", labels=["host", "state"]
    )
    for host, each in hosts.items():
        for state in HostState:
            states.add_metric([host, state.value], float(each["state"] == state.value))
        breaker = each["circuit_breaker"]
        circuit = breaker["state"] if breaker else None
        for circuit_state in CircuitState:
            is_in = float(circuit == circuit_state.value)
            circuits.add_metric([host, circuit_state.value], is_in)
    yield states
    yield circuits
