"""LangChain's standard integration tests with `langchain-openai`, over chat completions, Responses and embeddings."""

import os

import httpx
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

BASE_URL = os.environ["RELAY_URL"] + "/v1"


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the tests download a picture or a PDF, to send it: here it is a few bytes that are neither."""
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, content=b"picture of " + url.encode()))


class _Chat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-5.4"

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class TestChatCompletions(_Chat):
    @property
    def chat_model_params(self) -> dict[str, object]:
        return {"model": "gpt-5.4-mini", "base_url": BASE_URL, "api_key": "unused", "stream_usage": True}

    @property
    def supports_image_tool_message(self) -> bool:
        return False  # chat completions take text only as the result of a tool

    @property
    def supports_pdf_tool_message(self) -> bool:
        return False


class TestResponses(_Chat):
    @property
    def chat_model_params(self) -> dict[str, object]:
        return {"model": "gpt-5.4-mini", "base_url": BASE_URL, "api_key": "unused", "use_responses_api": True}


class TestResponsesOutputVersion(_Chat):
    """With LangChain's newer form of content blocks, and reasoning items."""

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": "o3-reasoning",
            "base_url": BASE_URL,
            "api_key": "unused",
            "use_responses_api": True,
            "output_version": "v1",
            "reasoning": {"effort": "low", "summary": "auto"},
        }


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        return {
            "model": "text-embedding-3-small",
            "base_url": BASE_URL,
            "api_key": "unused",
            "check_embedding_ctx_length": False,  # it counts tokens with a file that it downloads
        }
