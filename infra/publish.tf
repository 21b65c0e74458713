# The code, in the same apply: the script packs it, hands it to Azure and waits until the app answers.
# `zip_deploy_file` is not used: Flex Consumption answers 404 to it (terraform-provider-azurerm #29630), and nothing would
# make it deploy again.

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
    # No shell: the interpreter gets the script and its arguments as they are, on Windows too.
    interpreter = concat([var.python, local.publish_script], local.publish_arguments, ["--source"])
    command     = abspath(local.package_root)
  }

  lifecycle {
    # Every change of the app by the provider writes the two keyless connection strings again, which the script deletes.
    replace_triggered_by = [azurerm_function_app_flex_consumption.app]

    precondition {
      condition     = contains(local.package_rules, "*") && alltrue([for rule in local.package_rules : can(regex("^(\\*|\\*\\.[a-zA-Z0-9]+|[a-zA-Z0-9_.-]+/|!([a-zA-Z0-9_][a-zA-Z0-9_.-]*/)*([a-zA-Z0-9_][a-zA-Z0-9_.-]*/?|\\*\\*))$", rule))])
      error_message = ".funcignore holds a rule that is not one of the four kinds that package.tf explains; rewrite it."
    }
  }

  # The first request of a caller should find its model and the way to it.
  depends_on = [azurerm_private_endpoint.openai, azurerm_private_endpoint.app]
}
