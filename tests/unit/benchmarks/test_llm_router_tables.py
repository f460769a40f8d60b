import json

import httpx

from benchmarks.http_sections import Section
from benchmarks.http_server import TEXT
from benchmarks.llm_router import Bar, bars_table, figures_table, start_table
from benchmarks.llm_router_stub import hosts, text_of
from benchmarks.llm_router_worker import RouterFigures

SECTION = Section("A title", "a.module", ("ours", "peer", "broken"), "/", {1: 0.1}, [])


def figures(cpu: float) -> RouterFigures:
    return RouterFigures(cpu, 1_000.0, 1.0, 2.0, None, 300.0, 50.0)


RESULTS = {
    ("ours", 1): [figures(50.0), figures(200.0), figures(30.0)],
    ("peer", 1): [figures(100.0), figures(100.0), figures(100.0)],
    ("broken", 1): [None, None, None],
}


def cpu(of: RouterFigures) -> float:
    return of.cpu


def test_ratios_and_differences_are_those_within_a_round() -> None:
    bars = [
        Bar("ours", "peer", 0.6),
        Bar("ours", "peer", -60.0, is_ratio=False),
        Bar("ours", "peer", None),
        Bar("ours", "broken", 1.0),
        Bar("ours", "not taken", 1.0),
    ]
    assert bars_table(SECTION, RESULTS, bars, cpu, "µs").splitlines()[2:] == [
        "| ours / peer | ✓ 0.5 (0.3 to 2); ≤ 0.6 |",
        "| ours - peer | ✗ -50 µs (-70 to 100); ≤ -60 |",
        "| ours / peer | · 0.5 (0.3 to 2) |",
        "| ours / broken | did not run |",
    ]


def test_figures_are_medians_and_a_client_that_fails_is_named() -> None:
    text = figures_table(SECTION, RESULTS, cpu, "µs")
    assert "| ours | **50** µs; 1,000/s |" in text
    assert "| broken | did not run |" in text
    assert "| peer | 300 ms | 50 MB |" in start_table(RESULTS)


def test_the_hosts_answer_whole_or_in_as_many_pieces_as_asked_for() -> None:
    asked = {"model": "m", "messages": []}
    with hosts() as target, httpx.Client() as client:
        assert len(target.http) == 3
        for url in target.http:
            whole = client.post(f"{url}/v1/chat/completions", json=asked).json()
            assert whole["choices"][0]["message"]["content"] == TEXT
            streamed = asked | {"stream": True, "max_tokens": 3}
            lines = client.post(f"{url}/v1/chat/completions", json=streamed).text.split("\n\n")
            assert lines[-2] == "data: [DONE]"
            events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
            pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
            assert "".join(pieces) == text_of(3)
            assert events[-1]["choices"][0]["finish_reason"] == "stop"
