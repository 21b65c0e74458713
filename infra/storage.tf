# The storage account of the code package and the host's own state. Key access is disabled.

resource "azurerm_storage_account" "app" {
  # checkov:skip=CKV_AZURE_206:Holds a package that any apply recreates; replication to other zones or regions adds nothing.
  # checkov:skip=CKV_AZURE_59:Publishing code (One Deploy) fails behind a storage firewall; access needs an Entra role, keys and anonymous reads are off.
  # checkov:skip=CKV_AZURE_35:As above: a deny rule breaks publishing.
  # checkov:skip=CKV_AZURE_33:The queue service is not used.
  # checkov:skip=CKV2_AZURE_33:As for CKV_AZURE_59: publishing reaches it from Azure's deployment service.
  # checkov:skip=CKV_AZURE_43:The name is computed in names.tf, which checkov cannot evaluate; a test checks it.
  # checkov:skip=CKV2_AZURE_1:Encrypted at rest with Microsoft's keys; no customer data is stored.
  name                = local.names.storage_account
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags

  account_tier             = "Standard"
  account_kind             = "StorageV2"
  account_replication_type = "LRS"

  shared_access_key_enabled        = false
  default_to_oauth_authentication  = true
  allow_nested_items_to_be_public  = false
  cross_tenant_replication_enabled = false
  local_user_enabled               = false
  https_traffic_only_enabled       = true
  min_tls_version                  = "TLS1_2"

  blob_properties {
    delete_retention_policy {
      days = 7
    }

    container_delete_retention_policy {
      days = 7
    }
  }

  sas_policy {
    # There is no account key to sign a SAS with; one signed with a user delegation key is logged and short-lived.
    expiration_period = "00.01:00:00"
    expiration_action = "Log"
  }
}

resource "azurerm_storage_container" "code" {
  # checkov:skip=CKV2_AZURE_21:Reads are the host's own heartbeat, and logging them would be most of the cost; deletions are logged.
  name                  = "code"
  storage_account_id    = azurerm_storage_account.app.id
  container_access_type = "private"
}
