# Publishes the code in the same apply: the script packages and publishes it, and waits until the app is healthy.
# `zip_deploy_file` is not used: Flex Consumption returns 404 for it (terraform-provider-azurerm #29630), and a change
# of the code would not trigger it.

locals {
  publish_script = "${path.module}/publish.py"

  app_arguments = concat([
    "--subscription", data.azurerm_client_config.current.subscription_id,
    "--resource-group", local.resource_group_name,
    "--app", azurerm_function_app_flex_consumption.app.name,
    "--url", "https://${azurerm_function_app_flex_consumption.app.default_hostname}",
    "--update-strategy", local.update_strategy,
  ], var.check_health ? [] : ["--no-health"])

  publish_arguments = concat(["deploy"], local.app_arguments, var.remote_build ? [] : ["--prebuilt"])
  update_strategy   = var.rolling_updates ? "RollingUpdate" : "Recreate"
}

# The code: replaced when the package changes, or when what holds it was replaced. A changed setting is no reason.
resource "terraform_data" "publish" {
  count = var.deploy_code ? 1 : 0

  triggers_replace = {
    app          = azurerm_function_app_flex_consumption.app.id
    container    = azurerm_storage_container.code.id
    package      = local.package_hash
    remote_build = var.remote_build
  }

  provisioner "local-exec" {
    # Without a shell: the interpreter receives the script and its arguments unchanged, on Windows too.
    interpreter = concat([var.python, local.publish_script], local.publish_arguments, ["--source"])
    command     = abspath(local.package_root)
  }

  lifecycle {
    precondition {
      condition     = contains(local.package_rules, "*") && alltrue([for rule in local.package_rules : can(regex("^(\\*|\\*\\.[a-zA-Z0-9]+|[a-zA-Z0-9_.-]+/|!([a-zA-Z0-9_][a-zA-Z0-9_.-]*/)*([a-zA-Z0-9_][a-zA-Z0-9_.-]*/?|\\*\\*))$", rule))])
      error_message = ".funcignore contains an unsupported rule; use only the four kinds of rule that package.tf lists."
    }
  }

  # The accounts and the app must be reachable before the first request.
  depends_on = [azurerm_private_endpoint.openai, azurerm_private_endpoint.app, azurerm_private_endpoint.storage]
}

# The settings: after each change of the app, since the provider then writes two keyless connection strings, and resets
# the update strategy. The script reads first, and writes only what is wrong.
resource "terraform_data" "settings" {
  count = var.deploy_code ? 1 : 0

  triggers_replace = {
    app             = azurerm_function_app_flex_consumption.app.id
    update_strategy = local.update_strategy
  }

  provisioner "local-exec" {
    interpreter = concat([var.python, local.publish_script, "settings"], local.app_arguments, ["--source"])
    command     = abspath(local.package_root)
  }

  lifecycle {
    replace_triggered_by = [azurerm_function_app_flex_consumption.app]
  }

  # Until there is code, the app is not healthy.
  depends_on = [terraform_data.publish]
}
