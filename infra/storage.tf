# The storage account of the code package and the host's own state. Key access is disabled.

resource "azurerm_storage_account" "app" {
  # checkov:skip=CKV_AZURE_206:Holds a package that any apply recreates; zone_redundant replicates it to the region's other zones.
  # checkov:skip=CKV_AZURE_59:Public by default, for an app without a network way to it; access needs an Entra role, keys and anonymous reads are off. closed_storage closes it.
  # checkov:skip=CKV_AZURE_35:As above: closed_storage adds the deny rule, in a dynamic block that checkov does not evaluate.
  # checkov:skip=CKV_AZURE_36:closed_storage admits the app's subnet only; no other service of Azure uses this account.
  # checkov:skip=CKV_AZURE_33:The queue service is not used.
  # checkov:skip=CKV2_AZURE_33:closed_storage together with private_endpoints adds the private endpoint; by default there is no network for one.
  # checkov:skip=CKV_AZURE_43:The name is computed in names.tf, which checkov cannot evaluate; a test checks it.
  # checkov:skip=CKV2_AZURE_1:Encrypted at rest with Microsoft's keys; no customer data is stored.
  name                = local.names.storage_account
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags

  account_tier             = "Standard"
  account_kind             = "StorageV2"
  account_replication_type = var.zone_redundant ? "ZRS" : "LRS"

  shared_access_key_enabled        = false
  default_to_oauth_authentication  = true
  allow_nested_items_to_be_public  = false
  cross_tenant_replication_enabled = false
  local_user_enabled               = false
  https_traffic_only_enabled       = true
  min_tls_version                  = "TLS1_2"

  # Never both closed and unreachable: closed_storage requires the app's subnet, or a private endpoint for the blobs.
  public_network_access_enabled = !local.storage_has_private_endpoint

  # Not written when open: the provider reads Azure's defaults back as no block at all.
  dynamic "network_rules" {
    for_each = var.closed_storage ? [local.app_subnet_id] : []

    content {
      default_action             = "Deny"
      bypass                     = ["None"]
      virtual_network_subnet_ids = local.storage_has_private_endpoint ? [] : [network_rules.value]
    }
  }

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
