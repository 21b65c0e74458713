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
