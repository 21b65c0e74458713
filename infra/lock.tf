# A lock of the resource group: nothing in it can be deleted, by anyone, until the lock is. None is created by default.

resource "azurerm_management_lock" "main" {
  count = var.lock ? 1 : 0

  name       = "${var.project}-${var.environment}"
  scope      = local.resource_group_id
  lock_level = "CanNotDelete"
  notes      = "Set by Terraform (lock = true). Set it to false, and apply, before anything here is deleted or replaced."

  # Destroyed before anything else, so that lock = false and a removal fit into one apply, and so does destroy.
  depends_on = [
    azurerm_application_insights_workbook.streams,
    azurerm_cognitive_account_customer_managed_key.openai,
    azurerm_cognitive_account_rai_policy.model,
    azurerm_cognitive_deployment.model,
    azurerm_consumption_budget_resource_group.main,
    azurerm_function_app_flex_consumption.app,
    azurerm_monitor_diagnostic_setting.app,
    azurerm_monitor_diagnostic_setting.openai,
    azurerm_monitor_diagnostic_setting.storage,
    azurerm_monitor_scheduled_query_rules_alert_v2.streams,
    azurerm_private_endpoint.app,
    azurerm_private_endpoint.openai,
    azurerm_private_endpoint.storage,
    azurerm_subnet_network_security_group_association.app,
  ]
}
