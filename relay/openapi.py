"""The HTTP contract as an OpenAPI description, generated from the request models and the problem catalogue.

Served at `/openapi`: `/openapi.json` and `/docs` are claimed by the web framework inside the worker.
"""

from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from relay import problems
from relay.problems import PROBLEM_JSON
from relay.wires.stream import StreamRequest

_SCHEMAS: Final = "#/components/schemas/"

_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": [problem.code for problem in problems.CATALOGUE]},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "retry_after": {"type": "integer", "minimum": 0, "description": "seconds"},
        "content_filter": {"type": "object"},
    },
}

_OPENAI_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
        "request_id": {"type": "string"},
    },
}

_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_USAGE: Final[dict[str, Any]] = {
    "type": ["object", "null"],
    "required": ["input_tokens", "output_tokens"],
    "properties": {
        "input_tokens": _COUNT,
        "output_tokens": _COUNT,
        "reasoning_tokens": _COUNT,
        "cached_tokens": _COUNT,
    },
}

_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["text", "finish_reason", "model", "usage", "id"],
    "properties": {
        "text": {"type": "string"},
        "finish_reason": {"type": ["string", "null"]},
        "model": {"type": ["string", "null"]},
        "usage": _USAGE,
        "id": {"type": ["string", "null"]},
        "content_filter": {"type": "object"},
    },
}

_CHAT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "OpenAI's request; members that are not listed here are passed to the model unchanged.",
    "required": ["messages"],
    "properties": {
        "messages": {"description": "validated by the model service"},
        "model": {"type": ["string", "null"], "minLength": 1},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"]},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        "n": {"type": ["integer", "null"], "minimum": 1},
    },
}

_OPENAI_STREAM: Final[dict[str, Any]] = {
    "type": "string",
    "description": (
        "OpenAI's chunks, then `[DONE]`. A failure midway is an event with an error object, and behind it the transfer "
        "is broken off (no last chunk), since some clients skip such an event."
    ),
}

_REQUEST_ID: Final[dict[str, Any]] = {"X-Request-Id": {"schema": {"type": "string"}}}


@cache
def document() -> bytes:
    """The description, as JSON (OpenAPI 3.1)."""
    request = StreamRequest.model_json_schema(ref_template=_SCHEMAS + "{model}")
    schemas: dict[str, Any] = {
        **request.pop("$defs"),
        "StreamRequest": request,
        "Answer": _ANSWER,
        "Problem": _PROBLEM,
        "ChatCompletionRequest": _CHAT,
        "OpenAIError": _OPENAI_ERROR,
    }
    text = {"schema": {"type": "string"}}
    stream = {
        "text/event-stream": text,
        "application/x-ndjson": text,
        "application/jsonl": text,
        "text/plain": text,
        "application/json": _schema("Answer"),
    }
    openai_stream = {
        "text/event-stream": {"schema": _OPENAI_STREAM},
        "application/json": {"schema": {"type": "object"}},
    }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "A streaming front door to Azure OpenAI",
                "version": "1.0.0",
                "description": "Streams the answers of Azure OpenAI as they are generated.",
            },
            "paths": {
                "/stream": {
                    "post": _operation(
                        "stream", "Answer a prompt, as a stream", stream, "Problem", body="StreamRequest"
                    )
                },
                "/v1/chat/completions": {
                    "post": _operation(
                        "chat_completions",
                        "OpenAI's API, for any OpenAI client",
                        openai_stream,
                        "OpenAIError",
                        "ChatCompletionRequest",
                    )
                },
                "/v1/models": {
                    "get": _operation("models", "List the models that callers may name", _json(), "OpenAIError")
                },
                "/ready": {"get": _ready()},
                "/health": {"get": _open("health", "The process is up", _json())},
                "/chat": {"get": _open("chat", "A chat page", {"text/html": text})},
                "/openapi": {"get": _open("openapi", "This description", _json())},
            },
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    "function_key": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
                },
            },
        }
    )


def _schema(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _SCHEMAS + name}}


def _json() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}}


def _operation(name: str, summary: str, content: dict[str, Any], error: str, body: str | None = None) -> dict[str, Any]:
    """An operation that requires a key; one with a body can fail with every problem of the catalogue."""
    media_type = PROBLEM_JSON if error == "Problem" else "application/json"
    responses: dict[str, Any] = {
        "200": {"description": "OK", "headers": _REQUEST_ID, "content": content},
        "401": {"description": "The function key is missing or wrong; answered by the Functions host"},
    }
    for problem in problems.CATALOGUE if body else (problems.NOT_CONFIGURED,):
        responses.setdefault(
            str(int(problem.status)),
            {
                "description": _description(problem.status),
                "headers": _REQUEST_ID,
                "content": {media_type: _schema(error)},
            },
        )
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "security": [{"function_key": []}],
        "responses": responses,
    }
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": _schema(body)}}
    return operation


def _description(status: HTTPStatus) -> str:
    """The problems of the catalogue with this status."""
    return "; ".join(f"{it.code}: {it.title}" for it in problems.CATALOGUE if it.status == status)


def _ready() -> dict[str, Any]:
    operation = _operation("ready", "Whether the app can serve, and the remedy where it can't", _json(), "Problem")
    operation["responses"]["503"]["content"]["application/json"] = {"schema": {"type": "object"}}
    return operation


def _open(name: str, summary: str, content: dict[str, Any]) -> dict[str, Any]:
    """An operation that requires no key and does not fail."""
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": content}},
    }
