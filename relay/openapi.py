"""The HTTP contract as an OpenAPI description, generated from the request models and the problem catalogue.

Served at `/openapi`: `/openapi.json` and `/docs` are claimed by the web framework inside the worker.
"""

from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from relay import problems
from relay.problems import PROBLEM_JSON, Problem
from relay.version import VERSION
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
        "cache_write_tokens": _COUNT,
    },
}

_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["text", "finish_reason", "model", "usage", "id"],
    "properties": {
        "text": {"type": "string"},
        "reasoning": {"type": ["string", "null"], "description": "where the request has a reasoning_summary"},
        "finish_reason": {"type": ["string", "null"]},
        "model": {"type": ["string", "null"]},
        "usage": _USAGE,
        "id": {"type": ["string", "null"]},
        "content_filter": {"type": "object"},
    },
}

_CHAT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "OpenAI's request, of 256 members at most. Those that are not listed here are passed to the model "
    "unchanged, but one whose name differs from a listed one only in case, underscores or hyphens is rejected.",
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

_NEW_RESPONSE: Final[dict[str, Any]] = {
    "type": "object",
    "description": "OpenAI's request; members that are not listed here are passed to the model unchanged.",
    "properties": {
        "input": {"description": "validated by the model service"},
        "model": {"type": ["string", "null"], "minLength": 1},
        "stream": {"type": ["boolean", "null"]},
        "background": {"type": ["boolean", "null"]},
        "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
        "previous_response_id": {"type": ["string", "null"], "minLength": 1},
    },
}

_COMPACT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "OpenAI's request; members that are not listed here are passed to the model unchanged.",
    "properties": {name: _NEW_RESPONSE["properties"][name] for name in ("input", "model", "previous_response_id")},
}

_EMBEDDINGS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "OpenAI's request; members that are not listed here are passed to the model unchanged.",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "input": {"description": "validated by the model service"},
    },
}
# At Azure's address with an api-version, the deployment in the path is the model.
_DEPLOYMENT_EMBEDDINGS: Final[dict[str, Any]] = _EMBEDDINGS | {"required": ["input"]}

# Of the requests that concern a stored response; a parameter that is not listed here is an error.
_RESPONSE_ID: Final = ("response_id", "path", {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,256}$"})
_INCLUDE: Final = ("include[]", "query", {"type": "array", "items": {"type": "string", "maxLength": 256}})
_RETRIEVE: Final = (
    _RESPONSE_ID,
    _INCLUDE,
    ("include_obfuscation", "query", {"type": "boolean"}),
    ("stream", "query", {"type": "boolean"}),
    ("starting_after", "query", {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}),
)
_LIST: Final = (
    _RESPONSE_ID,
    _INCLUDE,
    ("after", "query", {"type": "string", "maxLength": 256}),
    ("before", "query", {"type": "string", "maxLength": 256}),
    ("limit", "query", {"type": "integer"}),
    ("order", "query", {"enum": ["asc", "desc"]}),
)

# Of the requests that concern a stream that can be resumed. A place is the id of a response, or of an event of it.
_PLACE: Final = ("response_id", "path", {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,256}(\\.[0-9]{1,18})?$"})
_COUNT_SENT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_RESUME: Final = (
    _PLACE,
    ("Last-Event-ID", "header", {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,256}\\.[0-9]{1,18}$"}),
    ("after", "query", _COUNT_SENT | {"description": "go on after this event: the number behind the dot of its id"}),
    ("after_bytes", "query", _COUNT_SENT | {"description": "plain text only: go on after so many bytes of the text"}),
)
_STOPPED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "deleted"],
    "properties": {"id": {"type": "string"}, "deleted": {"const": True}},
}

# Where OpenAI's API is: the paths of OpenAI, those of Azure OpenAI's v1 API, and those of its API with an api-version.
_ADDRESSES: Final = {"": "/v1", "azure_": "/openai/v1", "azure_versioned_": "/openai"}
_API_VERSION: Final[dict[str, Any]] = {
    "name": "api-version",
    "in": "query",
    "description": "of no effect",
    "schema": {"type": "string"},
}

_OPENAI_STREAM: Final[dict[str, Any]] = {
    "type": "string",
    "description": (
        "The events of OpenAI's API. A failure midway is an event with an error, after which the transfer is broken "
        "off (no last chunk), since some clients skip such an event."
    ),
}

# Without named callers, or a sign-in in front of the app, the Functions host checks its function key.
_OF_CALLERS: Final = "the key of a caller, where the app names its callers"
_SECURITY: Final[list[dict[str, Any]]] = [{"function_key": []}, {"bearer": []}, {"api_key": []}]

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
        "ResponseRequest": _NEW_RESPONSE,
        "CompactRequest": _COMPACT,
        "EmbeddingRequest": _EMBEDDINGS,
        "DeploymentEmbeddingRequest": _DEPLOYMENT_EMBEDDINGS,
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
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "A streaming front door to Azure OpenAI",
                "version": VERSION,
                "description": "Streams the answers of Azure OpenAI as they are generated.",
            },
            "paths": {
                "/stream": {
                    "post": _operation(
                        "stream", "Answer a prompt, as a stream", stream, "Problem", body="StreamRequest"
                    )
                },
                "/stream/{response_id}": {
                    "get": _resumption(stream),
                    "delete": _stored(
                        "stop_stream",
                        "Stop and delete the answer of a stream that can be resumed",
                        {"application/json": {"schema": _STOPPED}},
                        (_PLACE,),
                        "Problem",
                    ),
                },
                **_openai_paths(),
                "/ready": {"get": _ready()},
                "/health": {"get": _open("health", "The process is up; its version", _json())},
                "/": {"get": _home()},
                "/chat": {"get": _open("chat", "A chat page; 404 where it is turned off", {"text/html": text})},
                "/chat/assets/{name}": {"get": _chat_asset()},
                "/openapi": {"get": _open("openapi", "This description", _json())},
            },
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    "function_key": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
                    "bearer": {"type": "http", "scheme": "bearer", "description": _OF_CALLERS},
                    "api_key": {"type": "apiKey", "in": "header", "name": "api-key", "description": _OF_CALLERS},
                },
            },
        }
    )


def _schema(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _SCHEMAS + name}}


def _json() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}}


def _openai_paths() -> dict[str, Any]:
    """The operations of OpenAI's API at each of its addresses; with an api-version, the deployment is in the path."""
    stream = {"text/event-stream": {"schema": _OPENAI_STREAM}, **_json()}
    paths: dict[str, Any] = {}
    for prefix, address in _ADDRESSES.items():
        versioned = address == "/openai"
        chat = _operation(
            prefix + "chat_completions",
            "OpenAI's API, for any OpenAI client" + (" of Azure OpenAI" if prefix else ""),
            stream,
            "OpenAIError",
            "ChatCompletionRequest",
        )
        models = _operation(prefix + "models", "List the models that callers may name", _json(), "OpenAIError")
        model = _operation(prefix + "model", "One of these models", _json(), "OpenAIError", path_name="model")
        deployment = "/deployments/{deployment}" if versioned else ""
        if versioned:
            chat["parameters"] = [_path_parameter("deployment"), _API_VERSION]
            models["parameters"] = [_API_VERSION]
            model["parameters"].append(_API_VERSION)
        paths[f"{address}{deployment}/chat/completions"] = {"post": chat}
        paths |= _responses(prefix, address, stream)
        embeddings = _operation(
            prefix + "embeddings",
            "OpenAI's API of embeddings",
            _json(),
            "OpenAIError",
            "DeploymentEmbeddingRequest" if versioned else "EmbeddingRequest",
        )
        if versioned:
            embeddings["parameters"] = [_path_parameter("deployment"), _API_VERSION]
        paths[f"{address}{deployment}/embeddings"] = {"post": embeddings}
        paths[f"{address}/models"] = {"get": models}
        paths[f"{address}/models/{{model}}"] = {"get": model}
    return paths


def _responses(prefix: str, address: str, stream: dict[str, Any]) -> dict[str, Any]:
    """The operations of the Responses API at one address."""
    error, path = "OpenAIError", f"{address}/responses"
    one = f"{path}/{{response_id}}"
    create = _operation(prefix + "create_response", "A new response", stream, error, "ResponseRequest")
    compact = _operation(prefix + "compact_response", "A conversation made shorter", _json(), error, "CompactRequest")
    count = _operation(prefix + "count_input_tokens", "The tokens of an input", _json(), error, "CompactRequest")
    paths: dict[str, Any] = {
        path: {"post": create},
        f"{path}/compact": {"post": compact},
        f"{path}/input_tokens": {"post": count},
        one: {
            "get": _stored(prefix + "retrieve_response", "A stored response, or its events", stream, _RETRIEVE),
            "delete": _stored(prefix + "delete_response", "Delete a stored response", _json()),
        },
        f"{one}/cancel": {"post": _stored(prefix + "cancel_response", "Cancel a response in the background", _json())},
        f"{one}/input_items": {
            "get": _stored(prefix + "list_input_items", "What a stored response was made of", _json(), _LIST)
        },
    }
    if address == "/openai":
        by_deployment = _operation(
            "azure_deployment_create_response", "A new response", stream, error, "ResponseRequest"
        )
        by_deployment["parameters"] = [_path_parameter("deployment")]
        paths["/openai/deployments/{deployment}/responses"] = {"post": by_deployment}
        for operations in paths.values():
            for operation in operations.values():
                operation["parameters"] = [*operation.get("parameters", ()), _API_VERSION]
    return paths


def _stored(
    name: str,
    summary: str,
    content: dict[str, Any],
    parameters: tuple[tuple[str, str, dict[str, Any]], ...] = (_RESPONSE_ID,),
    error: str = "OpenAIError",
) -> dict[str, Any]:
    """An operation on a stored response: it can fail with every problem that an operation with a body can."""
    operation = _operation(name, summary, content, error, "ResponseRequest")
    del operation["requestBody"]
    operation["parameters"] = [
        {"name": name, "in": place, "required": place == "path", "schema": schema} for name, place, schema in parameters
    ]
    return operation


def _resumption(content: dict[str, Any]) -> dict[str, Any]:
    streams = {media_type: schema for media_type, schema in content.items() if media_type != "application/json"}
    operation = _stored("resume_stream", "Go on with a stream that can be resumed", streams, _RESUME, "Problem")
    operation["responses"]["204"] = {"description": "Nothing follows: the end was sent before", "headers": _REQUEST_ID}
    operation["responses"]["404"]["description"] += "; not_found: The app allows no stream to be resumed"
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _operation(
    name: str, summary: str, content: dict[str, Any], error: str, body: str | None = None, path_name: str | None = None
) -> dict[str, Any]:
    """An operation that requires a key; one with a body can fail with every problem of the catalogue."""
    media_type = PROBLEM_JSON if error == "Problem" else "application/json"
    responses: dict[str, Any] = {
        "200": {"description": "OK", "headers": _REQUEST_ID, "content": content},
        "401": {
            "description": f"{problems.INVALID_API_KEY.code}: {problems.INVALID_API_KEY.title}; without a body and "
            "these headers where the Functions host checks the key",
            "headers": {**_REQUEST_ID, "WWW-Authenticate": {"schema": {"type": "string"}}},
            "content": {media_type: _schema(error)},
        },
    }
    failures: tuple[Problem, ...] = (problems.NOT_CONFIGURED, problems.NOT_DISPATCHED)
    if body:
        failures = tuple(it for it in problems.CATALOGUE if it not in _OF_PATHS)
    elif path_name:
        failures = (*failures, problems.MODEL_NOT_FOUND)
    for problem in failures:
        responses.setdefault(
            str(int(problem.status)),
            {
                "description": _description(problem.status, failures),
                "headers": _REQUEST_ID,
                "content": {media_type: _schema(error)},
            },
        )
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "security": _SECURITY,
        "responses": responses,
    }
    if path_name:
        operation["parameters"] = [_path_parameter(path_name)]
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": _schema(body)}}
    return operation


_OF_PATHS: Final = (problems.NOT_FOUND, problems.METHOD_NOT_ALLOWED)  # never the failure of an operation that exists


def _description(status: HTTPStatus, failures: tuple[Problem, ...]) -> str:
    """Those of the problems with this status."""
    return "; ".join(f"{it.code}: {it.title}" for it in failures if it.status == status)


def _ready() -> dict[str, Any]:
    operation = _operation("ready", "Whether the app can serve, and the remedy where it can't", _json(), "Problem")
    operation["responses"]["503"]["content"]["application/json"] = {"schema": {"type": "object"}}
    return operation


def _home() -> dict[str, Any]:
    """The root leads to the chat page where that is on."""
    return {
        "operationId": "home",
        "summary": "Leads to the chat page",
        "responses": {
            "302": {"description": "To the chat page", "headers": {"Location": {"schema": {"type": "string"}}}},
            "404": {"description": "The chat page is turned off", "content": {PROBLEM_JSON: _schema("Problem")}},
        },
    }


def _chat_asset() -> dict[str, Any]:
    """A file of the chat page, whose name holds its hash."""
    text = {"schema": {"type": "string"}}
    return {
        "operationId": "chat_asset",
        "summary": "A file that the chat page loads on first use",
        "parameters": [
            {
                "name": "name",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "pattern": "^[a-z0-9.-]{1,80}$"},
            }
        ],
        "responses": {
            "200": {"description": "OK", "content": {"text/javascript": text, "application/json": {"schema": {}}}},
            "404": {"description": "There is no such file", "content": {PROBLEM_JSON: _schema("Problem")}},
        },
    }


def _open(name: str, summary: str, content: dict[str, Any]) -> dict[str, Any]:
    """An operation that requires no key and does not fail."""
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": content}},
    }
