# Publishes the code in the same apply: the script packages and publishes it, and waits until the app is healthy.
# `zip_deploy_file` is not used: Flex Consumption returns 404 for it (terraform-provider-azurerm #29630), and a change
# of the code would not trigger it.

locals {
  publish_script = "${path.module}/publish.py"

  publish_arguments = concat([
    "deploy",
    "--subscription", data.azurerm_client_config.current.subscription_id,
    "--resource-group", local.resource_group_name,
    "--app", azurerm_function_app_flex_consumption.app.name,
    "--url", "https://${azurerm_function_app_flex_consumption.app.default_hostname}",
  ], var.check_health ? [] : ["--no-health"])
}

resource "terraform_data" "publish" {
  count = var.deploy_code ? 1 : 0

  triggers_replace = {
    app     = azurerm_function_app_flex_consumption.app.id
    package = local.package_hash
  }

  provisioner "local-exec" {
    # Without a shell: the interpreter receives the script and its arguments unchanged, on Windows too.
    interpreter = concat([var.python, local.publish_script], local.publish_arguments, ["--source"])
    command     = abspath(local.package_root)
  }

  lifecycle {
    # On every change of the app the provider writes the two keyless connection strings again; the script deletes them.
    replace_triggered_by = [azurerm_function_app_flex_consumption.app]

    precondition {
      condition     = contains(local.package_rules, "*") && alltrue([for rule in local.package_rules : can(regex("^(\\*|\\*\\.[a-zA-Z0-9]+|[a-zA-Z0-9_.-]+/|!([a-zA-Z0-9_][a-zA-Z0-9_.-]*/)*([a-zA-Z0-9_][a-zA-Z0-9_.-]*/?|\\*\\*))$", rule))])
      error_message = ".funcignore contains an unsupported rule; use only the four kinds of rule that package.tf lists."
    }
  }

  # The accounts and the app must be reachable before the first request.
  depends_on = [azurerm_private_endpoint.openai, azurerm_private_endpoint.app]
}
