"""Estimates of tokens, and what corrects them."""

import base64
from typing import Any

import pytest

from shared.infrastructure.balancing.accounting import (
    Estimate,
    TokenEstimator,
    TokenUsage,
    estimate_tokens,
)
from shared.infrastructure.balancing.dialects import Dialect, dialect_of


def dialect(path: str = "/v1/chat/completions") -> Dialect:
    found = dialect_of(path)
    assert found is not None
    return found


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def read(payload: dict[str, Any], path: str = "/v1/chat/completions") -> int:
    return estimate_tokens(dialect(path), payload).input


PICTURE = {"url": "data:image/png;base64," + base64.b64encode(b"x" * 30_000).decode()}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}

# What is asked, and the fewest and the most tokens that make sense for it.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "English": (chat("The quick brown fox jumps over the lazy dog. " * 20), 200, 260),
    "Chinese": (chat("敏捷的棕色狐狸跳过了懒狗。" * 20), 180, 300),
    "Russian": (chat("Съешь же ещё этих мягких французских булок. " * 20), 350, 620),
    "emoji": (chat("😀" * 100), 100, 300),
    "nothing": ({}, 0, 0),
    "half a surrogate": (chat("\ud800" * 8), 1, 40),
    "a picture, however large": (chat([{"type": "image_url", "image_url": PICTURE}]), 900, 1100),
    "a small picture": (
        chat([{"type": "image_url", "image_url": {**PICTURE, "detail": "low"}}]),
        80,
        100,
    ),
    "a picture and a question": (
        chat([{"type": "image_url", "image_url": PICTURE}, {"type": "text", "text": "what " * 40}]),
        1040,
        1080,
    ),
    "a document of text": (
        chat([{"type": "document", "source": {"type": "text", "data": "word " * 400}}]),
        480,
        540,
    ),
    "a tool": (chat("hi", tools=[TOOL]), 20, 60),
    "many messages": ({"messages": [{"role": "user", "content": "x" * 40}] * 5000}, 68000, 72000),
}


@pytest.mark.parametrize("case", CASES)
def test_an_estimate_makes_sense(case: str) -> None:
    payload, least, most = CASES[case]
    assert least <= read(payload) <= most


@pytest.mark.parametrize("prompt", ["x", "é", "字"])
def test_a_long_text_is_sampled_and_yet_counted_in_full(prompt: str) -> None:
    assert read(chat(prompt * 400_000)) == pytest.approx(100 * read(chat(prompt * 4000)), rel=0.02)


@pytest.mark.parametrize(
    ("path", "payload", "expected"),
    [
        ("/v1/embeddings", {"input": ["x" * 40, "y" * 40]}, (20, 0)),
        ("/v1/embeddings", {"input": [[1, 2, 3], [4, 5]]}, (5, 0)),
        ("/v1/completions", {"prompt": "x" * 40, "max_tokens": 5}, (10, 5)),
        ("/v1/responses", {"input": "x" * 40, "max_output_tokens": 7}, (10, 7)),
        (
            "/v1/messages",
            {"system": "x" * 40, "messages": [{"content": "y" * 40}], "max_tokens": 9},
            (24, 9),
        ),
        ("/v1/chat/completions", chat("x" * 40), (14, 1000)),
    ],
)
def test_every_dialect_has_an_estimate(
    path: str, payload: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert estimate_tokens(dialect(path), payload)[:2] == expected


def test_however_deep_a_request_is_nested_it_has_an_estimate() -> None:
    content: Any = "x" * 40
    for _ in range(100_000):
        content = [content]
    assert read(chat(content)) == 14


def test_what_hosts_count_corrects_what_is_estimated() -> None:
    estimator = TokenEstimator()
    payload = chat("x" * 4000)
    for _ in range(50):
        estimate = estimator.estimate(dialect(), payload, "m")
        estimator.learn("m", estimate, TokenUsage(input=1500, output=10))
    assert estimator.estimate(dialect(), payload, "m").input == pytest.approx(1500, rel=0.01)
    assert estimator.estimate(dialect(), payload, "other").input == 1004


def test_one_odd_count_does_not_turn_everything_over() -> None:
    estimator = TokenEstimator()
    estimate = Estimate(100, 10, 100)
    for _ in range(20):
        estimator.learn("m", estimate, TokenUsage(100, 10))
    estimator.learn("m", estimate, TokenUsage(10**9, 10))
    assert estimator.snapshot()["m"]["ratio"] < 2.0


def test_the_usual_output_bounds_what_is_reserved() -> None:
    estimator = TokenEstimator()
    for number in range(1, 21):
        assert estimator.snapshot().get("m", {}).get("usual_output") is None
        estimator.learn("m", Estimate(1, 1, 1), TokenUsage(1, 10 * number))
    assert estimator.snapshot()["m"]["usual_output"] == 190
    asked = [estimator.estimate(dialect(), chat("x", max_tokens=most), "m") for most in (50, 4096)]
    assert [estimate.output for estimate in asked] == [50, 190]
    assert estimator.estimate(dialect(), chat("x"), "m").output == 190


def test_our_own_guesses_teach_nothing() -> None:
    estimator = TokenEstimator()
    estimator.learn("m", Estimate(1, 1, 1), TokenUsage(5, 5, estimated=True))
    assert estimator.snapshot() == {}


def test_a_counter_of_ones_own_is_believed() -> None:
    estimator = TokenEstimator(lambda *_: 42)
    assert estimator.estimate(dialect(), chat("x"), "m").input == 42


def test_models_are_forgotten_if_there_are_too_many() -> None:
    estimator = TokenEstimator(max_models=2)
    for model in ("a", "b", "a", "c"):
        estimator.learn(model, Estimate(1, 1, 1), TokenUsage(1, 1))
    assert list(estimator.snapshot()) == ["a", "c"]


COUNTED: dict[str, tuple[dict[str, Any] | None, TokenUsage | None]] = {
    "nothing": (None, None),
    "no counts": ({}, None),
    "nonsense": ({"prompt_tokens": "many", "completion_tokens": -1}, None),
    "zero, which is a count": ({"prompt_tokens": 0, "completion_tokens": 0}, TokenUsage()),
    "null for what does not apply": (
        {"prompt_tokens": 3, "completion_tokens": None, "prompt_tokens_details": None},
        TokenUsage(3),
    ),
    "only the total": ({"total_tokens": 5}, TokenUsage(5)),
    "OpenAI": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 80},
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        TokenUsage(100, 50, cached_read=80, reasoning=30),
    ),
    "OpenAI's responses": (
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "input_tokens_details": {"cached_tokens": 80},
            "output_tokens_details": {"reasoning_tokens": 30},
        },
        TokenUsage(100, 50, cached_read=80, reasoning=30),
    ),
    "Anthropic": (
        {
            "input_tokens": 10,
            "output_tokens": 50,
            "cache_read_input_tokens": 80,
            "cache_creation_input_tokens": 20,
        },
        TokenUsage(110, 50, cached_read=80, cache_write=20),
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_what_hosts_count_is_read_in_all_their_words(case: str) -> None:
    counted, expected = COUNTED[case]
    assert TokenUsage.of(counted) == expected
