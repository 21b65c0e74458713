# Named callers: their keys' digests, limits and prices as app settings, and the table in which all instances count.

locals {
  # One app setting has 128 KiB at most; a caller with two keys and limits takes about 350 bytes.
  caller_chunks = chunklist(sort(keys(var.callers)), 200)

  caller_settings = merge(
    {
      for index, names in local.caller_chunks : index == 0 ? "CALLERS" : "CALLERS_${index}" => jsonencode({
        for name in names : name => {
          for member, value in {
            key_digests = var.callers[name].key_digests
            principals  = var.callers[name].principals
            models      = var.callers[name].models
            limits      = { for limit, amount in var.callers[name].limits : limit => amount if amount != null }
          } : member => value if value != null && try(length(value) > 0, true)
        }
      })
    },
    local.has_caller_limits ? { CALLER_LIMITS = jsonencode({ for limit, amount in var.caller_limits : limit => amount if amount != null }) } : {},
    # App Service removes X-MS-CLIENT-PRINCIPAL* from what callers send exactly where auth_settings_v2 (app.tf) is on;
    # it requires authentication there, so that every request has them.
    var.entra_sign_in == null ? {} : { ENTRA_SIGN_IN = "true" },
    var.limits_store ? { LIMITS_STORE = "${trimsuffix(azurerm_storage_account.app.primary_table_endpoint, "/")}/callerlimits" } : {},
    length(var.token_prices) == 0 ? {} : {
      TOKEN_PRICES = jsonencode({
        for model, price in var.token_prices : model => { for kind, amount in price : kind => amount if amount != null }
      })
    },
  )

  has_caller_limits = anytrue([for amount in values(var.caller_limits) : amount != null])
}

# For counting what callers use. The app creates the table itself: azurerm_storage_table always uses the account's key,
# which is off.
resource "azurerm_role_assignment" "limits" {
  count = var.limits_store ? 1 : 0

  scope                = azurerm_storage_account.app.id
  role_definition_name = "Storage Table Data Contributor"
  principal_id         = azurerm_user_assigned_identity.app.principal_id
  principal_type       = "ServicePrincipal"
}
