"""What the store of limits uses of Azure's libraries, imported in one go by a thread (`relay.callers.table_store`)."""

from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.core.settings import settings
from azure.data.tables import UpdateMode
from azure.data.tables.aio import TableClient

from relay.upstream.credential import entra_credential

settings.tracing_enabled = False  # a span of each request would be billed, and has the address

__all__ = [
    "AzureNamedKeyCredential",
    "MatchConditions",
    "ResourceExistsError",
    "ResourceModifiedError",
    "ResourceNotFoundError",
    "TableClient",
    "UpdateMode",
    "entra_credential",
]
