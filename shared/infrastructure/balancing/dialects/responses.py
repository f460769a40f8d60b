"""The dialect of the Responses API, whose events are told apart by their `type`."""

from __future__ import annotations

from shared.infrastructure.balancing.dialects.payloads import (
    as_object,
    as_objects,
    as_prompt,
    as_text,
    count_of,
    error_in,
    has_part,
    parse_event,
    parts_text,
    unknown_error,
    usage_in,
)
from shared.infrastructure.balancing.dialects.protocol import FIRST, Event, JSONObject
from shared.infrastructure.balancing.errors import InvalidResponseError

_IMAGES = frozenset({"input_image"})
_FINISHED = frozenset({"response.completed", "response.incomplete"})
_FAILED = frozenset({"response.failed", "response.cancelled"})
# Events that say nothing; whatever else comes counts, that of tomorrow too.
_SILENT = frozenset(
    {
        *("response.created", "response.in_progress", "response.queued", "response.metadata"),
        *("response.output_item.added", "response.content_part.added"),
        *("response.reasoning_summary_part.added", "response.output_text.annotation.added"),
        *("response.failed", "response.cancelled", "error"),
    }
)


class OpenAIResponses:
    """`…/responses`."""

    name = "openai.responses"
    ending: tuple[str, str] = ("response.incomplete", "response.completed")

    def is_streamed(self, payload: JSONObject) -> bool:
        return payload.get("stream") is True

    def answers(self, payload: JSONObject) -> int:
        return 1

    def needs(self, payload: JSONObject) -> frozenset[str]:
        needs = {"tools"} if payload.get("tools") else set[str]()
        if has_part(payload.get("input"), _IMAGES):
            needs.add("vision")
        form = as_object(as_object(payload.get("text")).get("format"))
        if form.get("type") == "json_schema":
            needs.add("json_schema")
        if payload.get("top_logprobs"):
            needs.add("logprobs")
        return frozenset(needs)

    def prompt(self, payload: JSONObject) -> str:
        asked = payload.get("input")
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        instructions = as_text(payload.get("instructions"))
        messages = [{"role": "system", "content": instructions}] if instructions else []
        return as_prompt(payload.get("tools"), [*messages, *as_objects(items)])

    def max_output(self, payload: JSONObject) -> int | None:
        return count_of(payload.get("max_output_tokens"))

    def read_event(self, name: str | None, data: bytes) -> Event:
        event = parse_event(data)
        if isinstance(event, Event):
            return event
        kind = as_text(event.get("type")) or name
        if kind is None or name == "error":
            return Event(event, error=unknown_error(name, event))
        if kind.endswith(".delta"):
            said = event.get("delta")
            characters = len(said) if isinstance(said, str) else 0
            return Event(event, characters, FIRST if said else ())
        response = as_object(event.get("response"))
        if kind in _FINISHED:
            return Event(event, finished=FIRST, is_end=True, usage=usage_in(response))
        error = error_in(event) if "error" in event else None
        if kind in _FAILED:
            error = error or error_in(response) or {"message": kind}
        elif kind == "error":
            error = error or event
        is_content = kind.startswith("response.") and kind not in _SILENT
        said = FIRST if is_content else ()
        return Event(event, said=said, error=error, usage=usage_in(response))

    def error_of(self, body: JSONObject) -> JSONObject | None:
        error = error_in(body)
        if error is None and body.get("status") in {"failed", "cancelled"}:
            return {"message": f"the status of the response is {body['status']}"}
        return error

    def check(self, body: JSONObject, payload: JSONObject) -> None:
        if not isinstance(body.get("output"), list):
            raise InvalidResponseError(f"the answer has no 'output': {str(body)[:200]}")
        if body.get("status") == "completed" and not as_objects(body["output"]):
            raise InvalidResponseError(f"the answer has no 'output': {str(body)[:200]}")

    def usage_of(self, body: JSONObject) -> JSONObject | None:
        return usage_in(body)

    def content_length(self, body: JSONObject) -> int:
        length = 0
        for item in as_objects(body.get("output")):
            length += sum(map(len, parts_text(item.get("content"))))
            length += sum(map(len, parts_text(item.get("summary"))))
            length += len(as_text(item.get("name"))) + len(as_text(item.get("arguments")))
        return length
