"""What the name of a deployment means to the service; the package's docstring has the table."""

import re

DEFAULT_DEPLOYMENT = "gpt-5.4-mini"
MODEL_VERSION = "2026-03-17"
MANUAL_PACE = "paced-by-hand"  # a deployment whose name begins so writes no token until a test releases it
ANY_DEPLOYMENT = "*"  # in `ModelService.faults` and `ModelService.answers`: all that are not named there


def model_name(deployment: str) -> str:
    """The model that a deployment runs, with its version."""
    base = deployment if re.match(r"gpt-|o\d", deployment) else DEFAULT_DEPLOYMENT
    return f"{base}-{MODEL_VERSION}"


def is_missing(deployment: str) -> bool:
    """Whether the deployment does not exist."""
    return "missing" in deployment


def is_reasoning(deployment: str) -> bool:
    """Whether the deployment runs a reasoning model."""
    return bool(re.match(r"o\d", deployment)) or "reasoning" in deployment


def is_embedding(deployment: str) -> bool:
    """Whether the deployment runs an embedding model."""
    return "embedding" in deployment


def has_chat(deployment: str) -> bool:
    """Whether the deployment runs a model that has chat completions: Codex models have the Responses API only."""
    return not is_embedding(deployment) and "codex" not in deployment


def is_generative(deployment: str) -> bool:
    """Whether the deployment runs a model that generates text, and nothing else."""
    return bool(re.match(r"gpt-|o\d", deployment))


def is_paced_manually(deployment: str) -> bool:
    """Whether each of its tokens waits for a release."""
    return deployment.startswith(MANUAL_PACE)
