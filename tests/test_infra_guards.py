"""The guards of the Terraform configuration hold, and each of these mutations of it violates one of them."""

import pytest

from tests.infra_guards import GUARDS, read_files, violations

FILES = read_files()


def test_configuration_violates_no_guard() -> None:
    assert violations(FILES) == []


def test_guards_are_of_different_values_and_have_a_reason() -> None:
    places = [(guard.address, guard.path) for guard in GUARDS]
    assert len(set(places)) == len(places)
    assert all(guard.why for guard in GUARDS)


# Each: the file, a text of it, and what replaces all its occurrences. What `terraform test` alone would catch is here
# too, as it needs the provider.
MUTATIONS: dict[str, tuple[str, str, str]] = {
    # ---- Provider ----
    "provider pin: older versions": ("terraform.tf", ">= 5.2.0, <", ">= 5.0.0, <"),
    "provider pin: the next major version": ("terraform.tf", "< 6.0.0", "< 7.0.0"),
    "provider pin: removed": ("terraform.tf", '      version = ">= 5.2.0, < 6.0.0"\n', ""),
    "terraform version": ("terraform.tf", '">= 1.11"', '">= 1.5"'),
    "provider block: keys": ("terraform.tf", "storage_use_azuread = true", "storage_use_azuread = false"),
    "provider block: registrations": (
        "terraform.tf",
        'resource_provider_registrations = "none"',
        'resource_provider_registrations = "core"',
    ),
    "provider block: one resource provider less": ("terraform.tf", '      "Microsoft.Storage",\n', ""),
    "provider block: upper case": ("terraform.tf", '"microsoft.insights"', '"Microsoft.Insights"'),
    "provider block: no purge": ("terraform.tf", "purge_soft_delete_on_destroy = true", ""),
    "provider block: workspace kept": ("terraform.tf", "permanently_delete_on_destroy = true", ""),
    "provider block: group kept": ("terraform.tf", "prevent_deletion_if_contains_resources = false", ""),
    # ---- Publishing ----
    "publish trigger: package": ("publish.tf", "    package      = local.package_hash\n", ""),
    "publish trigger: app": (
        "publish.tf",
        "    app          = azurerm_function_app_flex_consumption.app.id\n",
        "",
    ),
    "publish trigger: container": ("publish.tf", "    container    = azurerm_storage_container.code.id\n", ""),
    "publish trigger: build": ("publish.tf", "    remote_build = var.remote_build\n", ""),
    "publish trigger: every change of the app": (
        "publish.tf",
        "    precondition {",
        "    replace_triggered_by = [azurerm_function_app_flex_consumption.app]\n    precondition {",
    ),
    "settings trigger: app": ("publish.tf", "replace_triggered_by = [azurerm_function_app_flex_consumption.app]", ""),
    "settings trigger: strategy": ("publish.tf", "    update_strategy = local.update_strategy\n", ""),
    "settings before the code": ("publish.tf", "  depends_on = [terraform_data.publish]\n", ""),
    "publish before the endpoints": ("publish.tf", ", azurerm_private_endpoint.app, ", ", "),
    "check_health inverted": (
        "publish.tf",
        'var.check_health ? [] : ["--no-health"]',
        'var.check_health ? ["--no-health"] : []',
    ),
    "check_health ignored": ("publish.tf", 'var.check_health ? [] : ["--no-health"]', "[]"),
    "check_health off by default": (
        "variables.tf",
        'from outside allowed_ip_ranges."\n  default     = true',
        'from outside allowed_ip_ranges."\n  default     = false',
    ),
    "remote_build inverted": ("publish.tf", "var.remote_build ? []", "!var.remote_build ? []"),
    "rolling_updates inverted": ("publish.tf", "var.rolling_updates ?", "!var.rolling_updates ?"),
    # ---- The app ----
    "depends_on: storage role": ("app.tf", "    azurerm_role_assignment.storage,\n", ""),
    "depends_on: model role": ("app.tf", "    azurerm_role_assignment.openai,\n", ""),
    "depends_on: telemetry role": ("app.tf", "    azurerm_role_assignment.telemetry,\n", ""),
    "depends_on: deployments": ("app.tf", "    azurerm_cognitive_deployment.model,\n", ""),
    "ignore_changes: all tags": ("app.tf", 'tags["hidden-link: /app-insights-resource-id"]', "tags"),
    "ignore_changes: app settings too": ("app.tf", "ignore_changes = [", "ignore_changes = [app_settings, "),
    "ignore_changes: removed": (
        "app.tf",
        '    ignore_changes = [tags["hidden-link: /app-insights-resource-id"]]\n',
        "",
    ),
    "plain HTTP": ("app.tf", "https_only                                     = true", "https_only = false"),
    "publishing password": (
        "app.tf",
        "webdeploy_publish_basic_authentication_enabled = false",
        "webdeploy_publish_basic_authentication_enabled = true",
    ),
    "old TLS": ("app.tf", '    minimum_tls_version     = "1.2"', '    minimum_tls_version     = "1.0"'),
    "addresses allowed": ("app.tf", '> 0 ? "Deny" : "Allow"', '> 0 ? "Allow" : "Deny"'),
    "host storage by name": ("app.tf", "AzureWebJobsStorage__blobServiceUri", "AzureWebJobsStorage__accountName"),
    "host storage by connection string": (
        "app.tf",
        '      AzureWebJobsStorage__credential     = "managedidentity"',
        '      AzureWebJobsStorage = ""\n      AzureWebJobsStorage__credential     = "managedidentity"',
    ),
    "host storage by another identity": (
        "app.tf",
        "AzureWebJobsStorage__clientId       = azurerm_user_assigned_identity.app.client_id",
        "AzureWebJobsStorage__clientId       = azurerm_user_assigned_identity.app.principal_id",
    ),
    "no function key": ("app.tf", "var.entra_sign_in == null ? {} : { HTTP", "var.entra_sign_in != null ? {} : { HTTP"),
    "sampling": ("app.tf", 'OTEL_TRACES_SAMPLER = "always_on"', 'OTEL_TRACES_SAMPLER = "always_off"'),
    # ---- Sign-in ----
    "allowed_applications": (
        "app.tf",
        "        allowed_applications = auth_settings_v2.value.allowed_applications\n",
        "",
    ),
    "allowed_groups": ("app.tf", "        allowed_groups       = auth_settings_v2.value.allowed_groups\n", ""),
    "audiences: those of others": (
        "app.tf",
        "[auth_settings_v2.value.client_id, ",
        '["*", auth_settings_v2.value.client_id, ',
    ),
    "audiences: removed": ("app.tf", ", auth_settings_v2.value.allowed_audiences\n", "\n"),
    "tenant: any": (
        "app.tf",
        "coalesce(auth_settings_v2.value.tenant_id, data.azurerm_client_config.current.tenant_id)",
        '"common"',
    ),
    "tenant: v1 tokens": ("app.tf", "current.tenant_id)}/v2.0", "current.tenant_id)}/"),
    "token store": ("app.tf", "token_store_enabled = false", "token_store_enabled = true"),
    "sign-in optional": ("app.tf", "require_authentication = true", "require_authentication = false"),
    "anonymous allowed": ("app.tf", '"RedirectToLoginPage"', '"AllowAnonymous"'),
    "excluded paths": ("app.tf", '["/health"]', '["/health", "/stream"]'),
    # ---- Accounts and models ----
    "account keys": ("openai.tf", "local_auth_enabled    = false", "local_auth_enabled    = true"),
    "account rules not written": (
        "openai.tf",
        '    default_action = local.uses_network ? "Deny" : "Allow"',
        '    default_action = "Deny"',
    ),
    "account bypass": ("openai.tf", '    bypass         = "None"', '    bypass         = "AzureServices"'),
    "account kind rolled back": ("openai.tf", "ignore_changes = [kind, ", "ignore_changes = ["),
    "account replaced after an upgrade": (
        "openai.tf",
        "project_management_enabled, customer_managed_key]",
        "customer_managed_key]",
    ),
    "account without an identity": ("openai.tf", '"SystemAssigned" : ', "null : "),
    "content filter not named": ("openai.tf", "? local.azure_content_filter :", "? null :"),
    "content filter destroyed first": ("openai.tf", "    create_before_destroy = true\n", ""),
    "capacity": ("openai.tf", "    capacity = each.value.capacity\n", ""),
    "model version": ("openai.tf", "    version = each.value.version\n", ""),
    "version upgrades": ("openai.tf", "  version_upgrade_option = each.value.version_upgrade_option\n", ""),
    # ---- Network ----
    "subnet destroyed first": ("network.tf", "    create_before_destroy = true\n", ""),
    "subnet without its network": (
        "network.tf",
        "    replace_triggered_by = [azurerm_virtual_network.main[0].location]\n",
        "",
    ),
    "group replaced with its region": ("resource_group.tf", "ignore_changes = [location]", "ignore_changes = [tags]"),
    "zone groups of Azure Policy removed": ("network.tf", "    ignore_changes = [private_dns_zone_group]\n", ""),
    "one DNS zone less": ("network.tf", ', "privatelink.services.ai.azure.com"', ""),
    "endpoint of another service": ("network.tf", '["sites"]', '["account"]'),
    # ---- Storage ----
    "storage keys": ("storage.tf", "shared_access_key_enabled        = false", "shared_access_key_enabled = true"),
    "public blobs": (
        "storage.tf",
        "allow_nested_items_to_be_public  = false",
        "allow_nested_items_to_be_public  = true",
    ),
    "soft delete of blobs": (
        "storage.tf",
        "    delete_retention_policy {\n      days = 7\n    }\n\n    container",
        "    container",
    ),
    "soft delete of containers": (
        "storage.tf",
        "    container_delete_retention_policy {\n      days = 7",
        "    container_delete_retention_policy {\n      days = 1",
    ),
    "closed storage stays open": (
        "storage.tf",
        '      default_action             = "Deny"',
        '      default_action = "Allow"',
    ),
    "closed storage for others": ("storage.tf", '["None"]', '["AzureServices"]'),
    "storage closed without its option": ("storage.tf", "var.closed_storage ?", "!var.closed_storage ?"),
    "role: another": ("identity.tf", '"Cognitive Services OpenAI User"', '"Cognitive Services Contributor"'),
    "role: wider scope": ("identity.tf", "azurerm_storage_account.app.id", "local.resource_group_id"),
    # ---- Monitoring and cost ----
    "diagnostic category: accounts": ("monitoring.tf", ': ["Audit"]', ': ["Trace"]'),
    "diagnostic category: calls always": ("monitoring.tf", "var.request_response_logs ?", "true ?"),
    "diagnostic category: storage": ("monitoring.tf", '"StorageDelete"', '"StorageRead"'),
    "diagnostic category: sign-ins": ("monitoring.tf", '["AppServiceAuthenticationLogs"]', '["FunctionAppLogs"]'),
    "diagnostic category: metrics": ("monitoring.tf", '"Transaction"', '"Capacity"'),
    "retention of the workspace": ("monitoring.tf", "  retention_in_days            = var.log_retention_in_days\n", ""),
    "retention by default": ("variables.tf", 'in days."\n  default     = 30', 'in days."\n  default     = 730'),
    "daily cap": ("monitoring.tf", "= var.daily_log_cap_in_gb", "= -1"),
    "telemetry keys": ("monitoring.tf", "local_authentication_enabled = false", "local_authentication_enabled = true"),
    "alert window": ("alerts.tf", '"PT15M"', '"PT1H"'),
    "alert frequency": ("alerts.tf", '"PT5M"', '"PT1H"'),
    "alert severity": ("alerts.tf", "severity    = 0", "severity    = 4"),
    "alert severity by rule": ("alerts.tf", "= each.value.severity", "= 3"),
    "alert threshold": ("alerts.tf", "    threshold               = 0", "    threshold               = 100"),
    "alert disabled": ("alerts.tf", "  auto_mitigation_enabled = true", "  enabled                 = false"),
    "alert without recipients": (
        "alerts.tf",
        "action_groups = [azurerm_monitor_action_group.main[0].id]",
        "action_groups = []",
    ),
    "budget threshold": ("budget.tf", "threshold      = 80", "threshold      = 800"),
    "budget forecast": ("budget.tf", '"Forecasted"', '"Actual"'),
    "budget replaced each month": ("budget.tf", "ignore_changes = [time_period]", "ignore_changes = []"),
    "lock of updates": ("lock.tf", '"CanNotDelete"', '"ReadOnly"'),
    "lock destroyed late": ("lock.tf", "    azurerm_cognitive_deployment.model,\n", ""),
    # ---- Validations ----
    "CORS wildcard host": ("variables.tf", r"^https?://[^/*\\s]+$", r"^https?://[^/\\s]+$"),
    # ---- Models ----
    "capacity by default": ("variables.tf", "optional(number, 50)", "optional(number, 1)"),
    "kind by default": ("variables.tf", 'optional(string, "AIServices")', 'optional(string, "OpenAI")'),
    "upgrades by default": (
        "variables.tf",
        'optional(string, "OnceCurrentVersionExpired")',
        'optional(string, "NoAutoUpgrade")',
    ),
    "backend without a priority": ("app.tf", "          priority   = deployment.priority\n", ""),
    "deployment without a version": ("openai.tf", "        version                = model.version\n", ""),
    "undefined local": ("network.tf", "  app_is_private  = try(var.private_endpoints.function_app, false)\n", ""),
    # ---- Names ----
    "project name": ("variables.tf", "^[a-z][a-z0-9]{1,9}$", "^[a-z][a-zA-Z0-9]{1,9}$"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_violates_a_guard(name: str) -> None:
    file, old, new = MUTATIONS[name]
    assert old in FILES[file], "the mutation no longer applies: adapt it to the file"
    assert violations({**FILES, file: FILES[file].replace(old, new)}) != []
