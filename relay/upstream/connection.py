"""All that connects to a model service, imported in one go by a thread (see `relay.upstream.pool.BackendPool`)."""

from relay.upstream.client import ModelServiceClient
from relay.upstream.credential import EntraToken
from relay.upstream.transport import create_session

__all__ = ["EntraToken", "ModelServiceClient", "create_session"]
