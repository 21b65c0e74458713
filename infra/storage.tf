# Where the code package and the host's own state lie. No key opens it.

resource "azurerm_storage_account" "app" {
  # checkov:skip=CKV_AZURE_206:Holds a package that any apply makes again; copies in other zones or regions protect nothing.
  # checkov:skip=CKV_AZURE_59:Publishing code (One Deploy) fails behind a storage firewall; no key, no anonymous read, Entra roles only.
  # checkov:skip=CKV_AZURE_35:As above: a deny rule breaks publishing.
  # checkov:skip=CKV_AZURE_33:The queue service is not used.
  # checkov:skip=CKV2_AZURE_33:As for CKV_AZURE_59: publishing reaches it from Azure's deployment service.
  # checkov:skip=CKV_AZURE_43:The name is made in names.tf, which checkov can't compute; a test holds it to the rule.
  # checkov:skip=CKV2_AZURE_1:Microsoft's keys encrypt at rest; nothing of a customer is stored.
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
    # There is no key to sign one with; what a delegation key signs is logged and ends soon.
    expiration_period = "00.01:00:00"
    expiration_action = "Log"
  }
}

resource "azurerm_storage_container" "code" {
  # checkov:skip=CKV2_AZURE_21:Reads are the host's own heartbeat, and logging them would be most of the bill; deletions are logged.
  name                  = "code"
  storage_account_id    = azurerm_storage_account.app.id
  container_access_type = "private"
}
