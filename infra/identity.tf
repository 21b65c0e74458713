# The app's identity and its three roles. The identity is user-assigned, so that its roles exist before the app.

resource "azurerm_user_assigned_identity" "app" {
  name                = local.names.identity
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags
}

# For the host's own state and the code package.
resource "azurerm_role_assignment" "storage" {
  scope                = azurerm_storage_account.app.id
  role_definition_name = "Storage Blob Data Owner"
  principal_id         = azurerm_user_assigned_identity.app.principal_id
  principal_type       = "ServicePrincipal"
}

# For calling the models; does not allow managing them.
resource "azurerm_role_assignment" "openai" {
  for_each = azurerm_cognitive_account.openai

  scope                = each.value.id
  role_definition_name = "Cognitive Services OpenAI User"
  principal_id         = azurerm_user_assigned_identity.app.principal_id
  principal_type       = "ServicePrincipal"
}

# For sending telemetry, which Application Insights accepts from Entra identities only.
resource "azurerm_role_assignment" "telemetry" {
  scope                = azurerm_application_insights.app.id
  role_definition_name = "Monitoring Metrics Publisher"
  principal_id         = azurerm_user_assigned_identity.app.principal_id
  principal_type       = "ServicePrincipal"
}
