"""The results of Azure's content filter, as they stand in responses and errors."""

from local.model_service.encoding import Document

CATEGORIES = ("hate", "self_harm", "sexual", "violence")


def filter_results(**filtered: str) -> Document:
    """The categories, all safe except the named ones: `filter_results(violence="medium")`."""
    return {name: {"filtered": name in filtered, "severity": filtered.get(name, "safe")} for name in CATEGORIES}


def prompt_filter_results(**filtered: str) -> Document:
    """The same for a prompt, which is checked for a jailbreak as well."""
    results = filter_results(**filtered)
    return {"hate": results.pop("hate"), "jailbreak": {"detected": False, "filtered": False}, **results}


def content_filter_entry(source: str, results: Document, end: int) -> Document:
    """One entry of `content_filters` in the Responses API: of a "prompt" or a "completion" of so many characters."""
    return {
        "blocked": any(one["filtered"] for one in results.values()),
        "source_type": source,
        "content_filter_raw": [],
        "content_filter_results": results,
        "content_filter_offsets": {"start_offset": 0, "end_offset": end, "check_offset": 0},
    }
