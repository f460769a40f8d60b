"""Vectors, one for each input and in their order; and lists of models."""

import base64
import struct
from typing import Any

import pytest

from shared.infrastructure.balancing.errors import InvalidResponseError, UpstreamStatusError
from shared.infrastructure.balancing.typed import embeddings, embeddings_payload, models
from shared.models import EmbeddingsAnswer, EmbeddingsRequest
from tests.unit.balancing.typed_scripts import Reply, pool_with, refusing

URL = "http://pool/v1/embeddings"
NAN, INFINITY = float("nan"), float("inf")


def vectors(*items: Any) -> dict[str, Any]:
    data = [{"index": index, "embedding": vector} for index, vector in items]
    return {"object": "list", "model": "e", "data": data, "usage": {"prompt_tokens": 4}}


def in_base64(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


async def embedded(reply: Reply, given: Any = ("a", "b")) -> EmbeddingsAnswer:
    pool = pool_with(reply)
    value = list(given) if isinstance(given, tuple) else given
    request = pool.request(embeddings_payload({"input": value}), URL)
    return await embeddings(pool.exchange, request)


async def test_vectors_come_in_the_order_of_the_inputs() -> None:
    answer = await embedded(Reply(body=vectors((1, [3.0, 4]), (0, [1.0, 2.5]))))
    assert answer.vectors == [[1.0, 2.5], [3.0, 4.0]]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4
    assert (answer.route.host, answer.route.served_model) == ("a", "e")


async def test_vectors_may_come_in_base64() -> None:
    answer = await embedded(Reply(body=vectors((0, in_base64(1.0, -0.5)), (1, [0, 1]))))
    assert answer.vectors == [[1.0, -0.5], [0.0, 1.0]]


async def test_a_text_or_a_list_of_tokens_is_one_input() -> None:
    for given in ("a", [1, 2, 3], [[1, 2, 3]]):
        assert len((await embedded(Reply(body=vectors((0, [1.0]))), given)).data) == 1


async def test_numbers_too_large_to_add_up_are_numbers() -> None:
    answer = await embedded(Reply(body=vectors((0, [1.7e308, 1.7e308]))), "a")
    assert answer.vectors == [[1.7e308, 1.7e308]]


WRONG = [
    vectors((0, [1.0]), (0, [1.0])),
    vectors((0, [1.0]), (2, [1.0])),
    vectors((0, [1.0]), (1, [1.0, 2.0])),
    vectors((0, []), (1, [])),
    vectors((0, ["1.0x"]), (1, [1.0])),
    vectors((0, "not base64!"), (1, [1.0])),
    vectors((0, "YWJj"), (1, [1.0])),
    vectors((0, in_base64(NAN)), (1, [1.0])),
    vectors((0, in_base64(INFINITY)), (1, [1.0])),
    vectors((0, None), (1, [1.0])),
    {"data": 7},
    {},
]


@pytest.mark.parametrize("body", WRONG)
async def test_anything_else_is_no_answer(body: Any) -> None:
    with pytest.raises(InvalidResponseError) as caught:
        await embedded(Reply(body=body))
    assert caught.value.host == "a"
    assert caught.value.__cause__ is None  # it would hold on to the vectors


def test_nan_among_numbers_is_found() -> None:
    with pytest.raises(ValueError, match="vector 1 is empty, or holds NaN"):
        EmbeddingsAnswer.model_validate(vectors((0, [1.0, 2.0]), (1, [NAN, 1.0])))


async def test_an_error_status_is_a_typed_error() -> None:
    with pytest.raises(UpstreamStatusError, match="too long"):
        await embedded(refusing(400, "too long"))


def test_a_request_goes_out_as_it_was_made() -> None:
    request = EmbeddingsRequest.model_validate({"input": "a", "truncate": True})
    assert embeddings_payload(request) == {"input": "a", "truncate": True}


async def test_models_are_listed_with_what_their_host_says_of_them() -> None:
    body = {"object": "list", "data": [{"id": "m", "owned_by": "us", "max_model_len": 4096}]}
    pool = pool_with(Reply(body=body))
    (model,) = (await models(pool.exchange, pool.request({}, "http://pool/v1/models"))).data
    assert (model.id, model.model_dump()["max_model_len"]) == ("m", 4096)


async def test_a_list_of_models_that_is_none_is_an_error() -> None:
    pool = pool_with(Reply(body={"data": [{"name": "m"}]}))
    with pytest.raises(InvalidResponseError):
        await models(pool.exchange, pool.request({}, "http://pool/v1/models"))
