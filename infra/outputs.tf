# URLs and ready-to-run commands. No output contains a key: the commands fetch it when they run.

locals {
  app_url = "https://${azurerm_function_app_flex_consumption.app.default_hostname}"

  function_key_command = join(" ", [
    "az functionapp keys list",
    "--subscription ${data.azurerm_client_config.current.subscription_id}",
    "--resource-group ${local.resource_group_name}",
    "--name ${azurerm_function_app_flex_consumption.app.name}",
    "--query functionKeys.default --output tsv",
  ])

  token_command = var.entra_sign_in == null ? null : (
    "az account get-access-token --scope api://${var.entra_sign_in.client_id}/.default --query accessToken --output tsv"
  )

  credential_header = var.entra_sign_in == null ? "x-functions-key: $(${local.function_key_command})" : "Authorization: Bearer $(${local.token_command})"

  portal = "https://portal.azure.com/#@${data.azurerm_client_config.current.tenant_id}/resource"
}

output "url" {
  description = "The app's URL."
  value       = local.app_url
}

output "stream_command" {
  description = "A command that streams an answer; it fetches its credential with az when it runs."
  value       = "curl --no-buffer --header \"${local.credential_header}\" --header 'Content-Type: application/json' --data '{\"input\": \"write a random 100 word paragraph\"}' ${local.app_url}/stream"
}

output "function_key_command" {
  description = "A command that prints the function key. Null with Entra sign-in."
  value       = var.entra_sign_in == null ? local.function_key_command : null
}

output "token_command" {
  description = "With Entra sign-in: a command that prints a token for the app. Otherwise null."
  value       = local.token_command
}

output "chat_url" {
  description = "The URL of the chat page."
  value       = "${local.app_url}/chat"
}

output "resource_group_name" {
  description = "The name of the resource group."
  value       = local.resource_group_name
}

output "function_app_name" {
  description = "The name of the Function App."
  value       = azurerm_function_app_flex_consumption.app.name
}

output "deployments" {
  description = "All model deployments, by account and name."
  value = {
    for deployment in local.deployments : deployment.key => {
      endpoint    = local.endpoints[deployment.instance]
      model       = deployment.model
      version     = deployment.version
      public_name = deployment.public_name
      sku         = deployment.sku
      capacity    = deployment.capacity
      priority    = deployment.priority
    }
  }
}

output "publish_command" {
  description = "A command that publishes the code, manually or from a pipeline, for example with deploy_code = false; run it in this folder."
  value       = join(" ", concat([var.python, "publish.py"], local.publish_arguments))
}

output "portal_links" {
  description = "Links to the resources in the portal."
  value = {
    resource_group       = "${local.portal}${local.resource_group_id}"
    function_app         = "${local.portal}${azurerm_function_app_flex_consumption.app.id}"
    application_insights = "${local.portal}${azurerm_application_insights.app.id}"
    workbook             = "${local.portal}${azurerm_application_insights_workbook.streams.id}"
  }
}
