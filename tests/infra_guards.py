"""Guards of the Terraform configuration that hold where no provider can be had: what a value must be, and why.

`violations` reads the files by pytest's own parser, so that a mutation of any of them is caught without a provider;
test_infra_guards.py applies such mutations. What values evaluate to is tested by `terraform test` (infra/tests).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import hcl2

INFRA = Path(__file__).resolve().parent.parent / "infra"
MISSING = "(nothing)"


@dataclass(frozen=True)
class Guard:
    """The value at `path` of the block at `address` must be `expected`: otherwise, `why`.

    address: `TYPE.NAME` of a resource, `variable.NAME`, `provider.azurerm`, `terraform` or `local`. path: the names
    and positions of nested blocks and attributes, joined by full stops; a dynamic block is named by `dynamic.KIND`.
    expected: as the parser returns it, with quotes around a string and `${}` around an expression. None: the attribute
    must not exist.
    """

    address: str
    path: str
    expected: object
    why: str


APP = "azurerm_function_app_flex_consumption.app"
ACCOUNT = "azurerm_cognitive_account.openai"
DEPLOYMENT = "azurerm_cognitive_deployment.model"
POLICY = "azurerm_cognitive_account_rai_policy.model"
KEY = "azurerm_cognitive_account_customer_managed_key.openai"
STORAGE = "azurerm_storage_account.app"
ALERT = "azurerm_monitor_scheduled_query_rules_alert_v2.streams"
BUDGET = "azurerm_consumption_budget_resource_group.main"
SIGN_IN = "dynamic.auth_settings_v2.content.0"
ENTRA = f"{SIGN_IN}.active_directory_v2.0"

GUARDS = [
    # ---- Provider and versions ----
    Guard("terraform", "required_version", '">= 1.11"', "replace_triggered_by and validations need it"),
    Guard(
        "terraform",
        "required_providers.0.azurerm",
        {"source": '"hashicorp/azurerm"', "version": '">= 5.2.0, < 6.0.0"'},
        "applied with 5.2.0 first; 6.0 replaces the app's storage arguments (terraform-provider-azurerm #29099)",
    ),
    Guard("provider.azurerm", "storage_use_azuread", True, "the storage account accepts no key"),
    Guard("provider.azurerm", "resource_provider_registrations", '"none"', "the list below is exact"),
    Guard(
        "provider.azurerm",
        "resource_providers_to_register",
        '${var.register_resource_providers ? concat(["Microsoft.App", "Microsoft.CognitiveServices", '
        '"Microsoft.ManagedIdentity", "Microsoft.OperationalInsights", "Microsoft.Storage", "Microsoft.Web", '
        '"microsoft.insights"], local.uses_network ? ["Microsoft.Network"] : []) : []}',
        "each is used, and the names are case-sensitive",
    ),
    Guard(
        "provider.azurerm",
        "features.0.cognitive_account.0.purge_soft_delete_on_destroy",
        True,
        "a deleted account keeps its name and quota for 48 hours",
    ),
    Guard(
        "provider.azurerm",
        "features.0.log_analytics_workspace.0.permanently_delete_on_destroy",
        True,
        "a new workspace of that name would restore the old one's content",
    ),
    Guard(
        "provider.azurerm",
        "features.0.resource_group.0.prevent_deletion_if_contains_resources",
        False,
        "Azure adds resources of its own, which must not make destroy fail",
    ),
    Guard("azurerm_resource_group.main", "lifecycle.0.ignore_changes", ["location"], "replacing it deletes everything"),
    # ---- The app ----
    Guard(APP, "https_only", True, "no plain HTTP"),
    Guard(APP, "webdeploy_publish_basic_authentication_enabled", False, "no password"),
    Guard(APP, "public_network_access_enabled", "${!local.app_is_private}", "private_endpoints.function_app"),
    Guard(APP, "virtual_network_subnet_id", "${local.app_subnet_id}", "vnet_integration"),
    Guard(APP, "app_settings", "${local.app_settings}", "the tests check local.app_settings"),
    Guard(APP, "http_concurrency", "${var.http_concurrency}", "Azure's default is one stream an instance"),
    Guard(APP, "maximum_instance_count", "${var.maximum_instance_count}", "limits the cost"),
    Guard(APP, "runtime_name", '"python"', "the app is written in it"),
    Guard(APP, "runtime_version", '"3.13"', "as .python-version"),
    Guard(APP, "storage_authentication_type", '"UserAssignedIdentity"', "no key"),
    Guard(APP, "storage_user_assigned_identity_id", "${azurerm_user_assigned_identity.app.id}", "no key"),
    Guard(APP, "identity.0.type", '"UserAssigned"', "its roles exist before the app does"),
    Guard(APP, "identity.0.identity_ids", ["${azurerm_user_assigned_identity.app.id}"], "the identity with the roles"),
    Guard(APP, "site_config.0.minimum_tls_version", '"1.2"', "no older TLS"),
    Guard(APP, "site_config.0.scm_minimum_tls_version", '"1.2"', "no older TLS"),
    Guard(
        APP,
        "site_config.0.ip_restriction_default_action",
        '${length(var.allowed_ip_ranges) > 0 ? "Deny" : "Allow"}',
        "allowed_ip_ranges would allow everyone",
    ),
    Guard(APP, "site_config.0.dynamic.ip_restriction.content.0.action", '"Allow"', "the listed ranges may call"),
    Guard(
        APP, "site_config.0.dynamic.ip_restriction.for_each", "${var.allowed_ip_ranges}", "the listed ranges may call"
    ),
    Guard(
        APP,
        "site_config.0.dynamic.cors.content.0",
        {"allowed_origins": "${cors.value}"},
        "only the listed origins, and without credentials",
    ),
    Guard(
        APP,
        "lifecycle.0.ignore_changes",
        ['${tags["hidden-link: /app-insights-resource-id"]}'],
        "Azure adds this tag, and removing it restarts the app on every apply; everything else must be applied",
    ),
    Guard(
        APP,
        "depends_on",
        [
            "${azurerm_role_assignment.storage}",
            "${azurerm_role_assignment.openai}",
            "${azurerm_role_assignment.telemetry}",
            "${azurerm_cognitive_deployment.model}",
        ],
        "without its roles the app starts, fails and is slow to retry",
    ),
    Guard("azurerm_service_plan.app", "sku_name", '"FC1"', "Flex Consumption"),
    Guard("azurerm_service_plan.app", "zone_balancing_enabled", "${var.zone_redundant}", "off by default"),
    # ---- Sign-in ----
    Guard(
        APP,
        "dynamic.auth_settings_v2.for_each",
        "${var.entra_sign_in == null ? [] : [var.entra_sign_in]}",
        "sign-in is an option",
    ),
    Guard(APP, f"{SIGN_IN}.auth_enabled", True, "anyone could call the app"),
    Guard(APP, f"{SIGN_IN}.require_authentication", True, "anyone could call the app"),
    Guard(APP, f"{SIGN_IN}.require_https", True, "no plain HTTP"),
    Guard(APP, f"{SIGN_IN}.unauthenticated_action", '"RedirectToLoginPage"', "anyone could call the app"),
    Guard(APP, f"{SIGN_IN}.excluded_paths", ['"/health"'], "every other path needs a sign-in"),
    Guard(APP, f"{SIGN_IN}.login.0.token_store_enabled", False, "callers' tokens would be stored"),
    Guard(
        APP,
        ENTRA,
        {
            "client_id": "${auth_settings_v2.value.client_id}",
            "tenant_auth_endpoint": '"https://login.microsoftonline.com/${coalesce(auth_settings_v2.value.tenant_id, '
            'data.azurerm_client_config.current.tenant_id)}/v2.0"',
            "allowed_audiences": "${distinct(concat([auth_settings_v2.value.client_id, "
            '"api://${auth_settings_v2.value.client_id}"], auth_settings_v2.value.allowed_audiences))}',
            "allowed_applications": "${auth_settings_v2.value.allowed_applications}",
            "allowed_groups": "${auth_settings_v2.value.allowed_groups}",
        },
        "tokens of this tenant, for this app, of the allowed callers only",
    ),
    # ---- Publishing ----
    Guard("terraform_data.publish", "count", "${var.deploy_code ? 1 : 0}", "deploy_code"),
    Guard(
        "terraform_data.publish",
        "triggers_replace",
        {
            "app": "${azurerm_function_app_flex_consumption.app.id}",
            "container": "${azurerm_storage_container.code.id}",
            "package": "${local.package_hash}",
            "remote_build": "${var.remote_build}",
        },
        "the code is published when it, or what holds it, changed, and at no other time",
    ),
    Guard(
        "terraform_data.publish",
        "provisioner.0.local-exec",
        {
            "interpreter": '${concat([var.python, local.publish_script], local.publish_arguments, ["--source"])}',
            "command": "${abspath(local.package_root)}",
        },
        "the script runs without a shell",
    ),
    Guard(
        "terraform_data.publish",
        "depends_on",
        [
            "${azurerm_private_endpoint.openai}",
            "${azurerm_private_endpoint.app}",
            "${azurerm_private_endpoint.storage}",
        ],
        "what the app reaches through endpoints must be reachable first",
    ),
    Guard(
        "terraform_data.publish",
        "lifecycle.0.replace_triggered_by",
        None,
        "a changed setting or tag of the app is no reason to publish its code again",
    ),
    Guard("terraform_data.settings", "count", "${var.deploy_code ? 1 : 0}", "deploy_code"),
    Guard(
        "terraform_data.settings",
        "triggers_replace",
        {
            "app": "${azurerm_function_app_flex_consumption.app.id}",
            "update_strategy": "${local.update_strategy}",
        },
        "rolling_updates on and off again",
    ),
    Guard(
        "terraform_data.settings",
        "lifecycle.0.replace_triggered_by",
        ["${azurerm_function_app_flex_consumption.app}"],
        "on each change of the app the provider writes two keyless connection strings (#29149, #29693)",
    ),
    Guard(
        "terraform_data.settings",
        "provisioner.0.local-exec",
        {
            "interpreter": '${concat([var.python, local.publish_script, "settings"], local.app_arguments, '
            '["--source"])}',
            "command": "${abspath(local.package_root)}",
        },
        "the script runs without a shell",
    ),
    Guard("terraform_data.settings", "depends_on", ["${terraform_data.publish}"], "no code, not healthy"),
    Guard(
        "local",
        "app_arguments",
        '${concat(["--subscription", data.azurerm_client_config.current.subscription_id, "--resource-group", '
        'local.resource_group_name, "--app", azurerm_function_app_flex_consumption.app.name, "--url", '
        '"https://${azurerm_function_app_flex_consumption.app.default_hostname}", "--update-strategy", '
        'local.update_strategy], var.check_health ? [] : ["--no-health"])}',
        "check_health",
    ),
    Guard(
        "local",
        "publish_arguments",
        '${concat(["deploy"], local.app_arguments, var.remote_build ? [] : ["--prebuilt"])}',
        "remote_build",
    ),
    Guard("local", "update_strategy", '${var.rolling_updates ? "RollingUpdate" : "Recreate"}', "rolling_updates"),
    # ---- Accounts and models ----
    Guard(ACCOUNT, "local_auth_enabled", False, "no key"),
    Guard(ACCOUNT, "custom_subdomain_name", "${each.value.subdomain}", "Entra authentication requires it"),
    Guard(ACCOUNT, "public_network_access_enabled", "${var.private_endpoints == null}", "private_endpoints"),
    Guard(ACCOUNT, "network_acls.0.default_action", '${local.uses_network ? "Deny" : "Allow"}', "vnet_integration"),
    Guard(ACCOUNT, "network_acls.0.bypass", '"None"', "vnet_integration allows nothing else"),
    Guard(ACCOUNT, "network_acls.0.ip_rules", None, "vnet_integration allows nothing else"),
    Guard(
        ACCOUNT,
        "network_acls.0.dynamic.virtual_network_rules.for_each",
        "${local.uses_network && var.private_endpoints == null ? [local.app_subnet_id] : []}",
        "the app's subnet, unless there is a private endpoint",
    ),
    Guard(
        ACCOUNT,
        "lifecycle.0.ignore_changes",
        ["kind", "project_management_enabled", "customer_managed_key"],
        "Azure upgrades accounts by itself, and a plan would ask it to roll back or replace them",
    ),
    Guard(ACCOUNT, "kind", "${each.value.kind}", "chosen by account"),
    Guard(ACCOUNT, "project_management_enabled", "${each.value.projects}", "off unless asked for"),
    Guard(
        ACCOUNT,
        "identity.0",
        {
            "type": '${var.customer_managed_key == null ? "SystemAssigned" : "SystemAssigned, UserAssigned"}',
            "identity_ids": "${var.customer_managed_key == null ? null : [var.customer_managed_key.identity_id]}",
        },
        "Azure adds one with an upgrade, and the provider refuses projects without one",
    ),
    Guard(KEY, "identity_client_id", "${var.customer_managed_key.identity_client_id}", "the identity that may use it"),
    Guard(POLICY, "lifecycle.0.create_before_destroy", True, "deployments must leave a policy before it is destroyed"),
    Guard(POLICY, "mode", "${each.value.mode}", "content_filter"),
    Guard(POLICY, "base_policy_name", "${each.value.base}", "content_filter"),
    Guard("local", "azure_content_filter", '"Microsoft.DefaultV2"', "an omitted filter stays what it was"),
    Guard(
        DEPLOYMENT,
        "rai_policy_name",
        '${each.value.rai_policy_name != null ? each.value.rai_policy_name : (each.value.content_filter == "default" '
        "? local.azure_content_filter : "
        'azurerm_cognitive_account_rai_policy.model["${each.value.instance}/${each.value.content_filter}"].name)}',
        "always named, so that a filter can be turned off again",
    ),
    Guard(DEPLOYMENT, "sku.0.capacity", "${each.value.capacity}", "Azure's default is 1: instant 429s"),
    Guard(DEPLOYMENT, "version_upgrade_option", "${each.value.version_upgrade_option}", "Azure's default drifts"),
    Guard(DEPLOYMENT, "model.0.version", "${each.value.version}", "without a version no plan is empty"),
    Guard(DEPLOYMENT, "model.0.format", "${each.value.format}", "models of other makers"),
    # ---- Network ----
    Guard("azurerm_subnet.app", "lifecycle.0.create_before_destroy", True, "InUseSubnetCannotBeDeleted"),
    Guard(
        "azurerm_subnet.app",
        "lifecycle.0.replace_triggered_by",
        ["${azurerm_virtual_network.main[0].location}"],
        "a replaced network takes its subnets along",
    ),
    Guard("azurerm_subnet.app", "service_endpoint.0.service", '"Microsoft.CognitiveServices"', "the accounts' rule"),
    Guard(
        "azurerm_subnet.app",
        "dynamic.service_endpoint.for_each",
        '${var.closed_storage ? ["Microsoft.Storage"] : []}',
        "the storage's rule",
    ),
    Guard(
        "azurerm_subnet.app",
        "delegation.0.service_delegation.0.name",
        '"Microsoft.App/environments"',
        "Flex Consumption",
    ),
    # ---- Storage ----
    Guard(STORAGE, "shared_access_key_enabled", False, "no key"),
    Guard(STORAGE, "default_to_oauth_authentication", True, "the portal would use a key"),
    Guard(STORAGE, "allow_nested_items_to_be_public", False, "no anonymous reads"),
    Guard(STORAGE, "cross_tenant_replication_enabled", False, "not into other tenants"),
    Guard(STORAGE, "local_user_enabled", False, "no passwords"),
    Guard(STORAGE, "https_traffic_only_enabled", True, "no plain HTTP"),
    Guard(STORAGE, "min_tls_version", '"TLS1_2"', "no older TLS"),
    Guard(STORAGE, "public_network_access_enabled", "${!local.storage_has_private_endpoint}", "closed_storage"),
    Guard(STORAGE, "account_replication_type", '${var.zone_redundant ? "ZRS" : "LRS"}', "zone_redundant"),
    Guard(
        STORAGE,
        "dynamic.network_rules.content.0",
        {
            "default_action": '"Deny"',
            "bypass": ['"None"'],
            "virtual_network_subnet_ids": "${local.storage_has_private_endpoint ? [] : [network_rules.value]}",
        },
        "closed_storage",
    ),
    Guard(
        STORAGE,
        "dynamic.network_rules.for_each",
        "${var.closed_storage ? [local.app_subnet_id] : []}",
        "the provider reads open rules back as no block",
    ),
    Guard(STORAGE, "blob_properties.0.delete_retention_policy.0.days", 7, "a deleted package can be restored"),
    Guard(
        STORAGE,
        "blob_properties.0.container_delete_retention_policy.0.days",
        7,
        "a deleted container can be restored",
    ),
    Guard(
        STORAGE,
        "sas_policy.0",
        {"expiration_period": '"00.01:00:00"', "expiration_action": '"Log"'},
        "signatures are logged and short-lived",
    ),
    Guard("azurerm_storage_container.code", "container_access_type", '"private"', "no anonymous reads"),
    # ---- Monitoring ----
    Guard("azurerm_log_analytics_workspace.main", "local_authentication_enabled", False, "no key"),
    Guard("azurerm_log_analytics_workspace.main", "retention_in_days", "${var.log_retention_in_days}", "cost"),
    Guard("azurerm_log_analytics_workspace.main", "daily_quota_gb", "${var.daily_log_cap_in_gb}", "cost"),
    Guard("azurerm_application_insights.app", "local_authentication_enabled", False, "no key"),
    Guard("azurerm_application_insights.app", "retention_in_days", "${var.log_retention_in_days}", "cost"),
    Guard("azurerm_application_insights.app", "daily_data_cap_in_gb", "${var.daily_log_cap_in_gb}", "cost"),
    Guard(
        "azurerm_monitor_diagnostic_setting.openai",
        "dynamic.enabled_log.for_each",
        '${var.request_response_logs ? ["Audit", "RequestResponse"] : ["Audit"]}',
        "changes of the accounts are logged, calls of their models when asked for",
    ),
    Guard("azurerm_monitor_diagnostic_setting.openai", "enabled_metric.0.category", '"AllMetrics"', "token counts"),
    Guard("azurerm_monitor_diagnostic_setting.storage", "enabled_log.0.category", '"StorageDelete"', "deletions"),
    Guard("azurerm_monitor_diagnostic_setting.storage", "enabled_metric.0.category", '"Transaction"', "calls"),
    Guard(
        "azurerm_monitor_diagnostic_setting.storage",
        "target_resource_id",
        '"${azurerm_storage_account.app.id}/blobServices/default"',
        "the account itself has no such log",
    ),
    Guard(
        "azurerm_monitor_diagnostic_setting.app",
        "dynamic.enabled_log.for_each",
        '${var.entra_sign_in == null ? [] : ["AppServiceAuthenticationLogs"]}',
        "sign-ins are logged",
    ),
    Guard("azurerm_monitor_diagnostic_setting.app", "enabled_metric.0.category", '"AllMetrics"', "instances"),
    # ---- Alerts and cost ----
    Guard(ALERT, "for_each", "${length(var.alert_emails) > 0 ? local.alerts : {}}", "each rule has a price"),
    Guard(ALERT, "severity", "${each.value.severity}", "by rule"),
    Guard(ALERT, "window_duration", '"PT15M"', "the window of the queries and descriptions"),
    Guard(ALERT, "evaluation_frequency", '"PT5M"', "noticed within five minutes"),
    Guard(ALERT, "auto_mitigation_enabled", True, "resolved when the condition no longer holds"),
    Guard(ALERT, "enabled", None, "rules are enabled"),
    Guard(ALERT, "criteria.0.operator", '"GreaterThan"', "a query returns a row if the alert should fire"),
    Guard(ALERT, "criteria.0.threshold", 0, "a query returns a row if the alert should fire"),
    Guard(ALERT, "criteria.0.time_aggregation_method", '"Count"', "a query returns a row if the alert should fire"),
    Guard(
        ALERT,
        "criteria.0.failing_periods.0",
        {"minimum_failing_periods_to_trigger_alert": 1, "number_of_evaluation_periods": 1},
        "the window is long enough already",
    ),
    Guard(ALERT, "action.0.action_groups", ["${azurerm_monitor_action_group.main[0].id}"], "someone is notified"),
    Guard("local", "alerts.silent.severity", 0, "nothing works"),
    Guard("local", "alerts.failing.severity", 1, "many streams fail"),
    Guard("local", "alerts.rate-limited.severity", 2, "callers are told to wait"),
    Guard(BUDGET, "time_grain", '"Monthly"', "monthly_budget"),
    Guard(BUDGET, "notification.0.threshold", 80, "before it is spent"),
    Guard(BUDGET, "notification.0.threshold_type", '"Actual"', "before it is spent"),
    Guard(BUDGET, "notification.1.threshold", 100, "when it will be overspent"),
    Guard(BUDGET, "notification.1.threshold_type", '"Forecasted"', "when it will be overspent"),
    Guard(BUDGET, "notification.0.contact_roles", ['"Owner"'], "someone is notified without alert_emails"),
    Guard(BUDGET, "notification.1.contact_roles", ['"Owner"'], "someone is notified without alert_emails"),
    Guard(BUDGET, "lifecycle.0.ignore_changes", ["time_period"], "next month's plan would replace the budget"),
    # ---- Lock ----
    Guard("azurerm_management_lock.main", "lock_level", '"CanNotDelete"', "updates must stay possible"),
    Guard("azurerm_management_lock.main", "scope", "${local.resource_group_id}", "everything"),
    # ---- What turns an option on, and what it is applied to ----
    Guard("local", "uses_network", "${var.vnet_integration != null}", "vnet_integration"),
    Guard(
        "local",
        "creates_network",
        "${local.uses_network && try(var.vnet_integration.subnet_id, null) == null}",
        "vnet_integration",
    ),
    Guard(
        "local",
        "app_subnet_id",
        "${local.uses_network ? (local.creates_network ? azurerm_subnet.app[0].id : var.vnet_integration.subnet_id) "
        ": null}",
        "vnet_integration",
    ),
    Guard("local", "app_is_private", "${try(var.private_endpoints.function_app, false)}", "private_endpoints"),
    Guard(
        "local",
        "storage_has_private_endpoint",
        "${var.closed_storage && var.private_endpoints != null}",
        "closed_storage",
    ),
    Guard(
        "local",
        "account_dns_zones",
        [
            '"privatelink.openai.azure.com"',
            '"privatelink.cognitiveservices.azure.com"',
            '"privatelink.services.ai.azure.com"',
        ],
        "the three names of an account",
    ),
    Guard(
        "azurerm_private_endpoint.openai",
        "for_each",
        "${var.private_endpoints == null ? {} : {for instance in local.instances : instance.key => instance}}",
        "private_endpoints",
    ),
    Guard(
        "azurerm_private_endpoint.openai",
        "depends_on",
        ["${azurerm_cognitive_deployment.model}"],
        "a busy account rejects the endpoint",
    ),
    Guard("azurerm_private_endpoint.app", "count", "${local.app_is_private ? 1 : 0}", "private_endpoints"),
    Guard(
        "azurerm_private_endpoint.storage", "count", "${local.storage_has_private_endpoint ? 1 : 0}", "closed_storage"
    ),
    Guard(
        "azurerm_subnet.app",
        "address_prefixes",
        [
            '${cidrsubnet(var.vnet_integration.address_space, 27 - tonumber(split("/", '
            "var.vnet_integration.address_space)[1]), 0)}"
        ],
        "Flex Consumption requires a /27",
    ),
    Guard(
        "azurerm_subnet_network_security_group_association.app",
        "subnet_id",
        "${azurerm_subnet.app[0].id}",
        "the subnet has a network security group",
    ),
    Guard("azurerm_role_assignment.openai", "for_each", "${azurerm_cognitive_account.openai}", "every account"),
    Guard("azurerm_role_assignment.limits", "count", "${var.limits_store ? 1 : 0}", "limits_store"),
    Guard("azurerm_management_lock.main", "count", "${var.lock ? 1 : 0}", "lock"),
    Guard(BUDGET, "count", "${var.monthly_budget == null ? 0 : 1}", "monthly_budget"),
    Guard(BUDGET, "amount", "${var.monthly_budget}", "monthly_budget"),
    Guard(BUDGET, "resource_group_id", "${local.resource_group_id}", "monthly_budget"),
    Guard(BUDGET, "notification.0.contact_emails", "${var.alert_emails}", "someone is notified"),
    Guard(BUDGET, "notification.1.contact_emails", "${var.alert_emails}", "someone is notified"),
    Guard(
        KEY,
        "for_each",
        "${var.customer_managed_key == null ? {} : {for instance in local.instances : instance.key => instance}}",
        "customer_managed_key",
    ),
    Guard(APP, "instance_memory_in_mb", "${var.instance_memory_in_mb}", "its CPU share grows with the memory"),
    Guard(
        APP,
        "dynamic.always_ready.for_each",
        "${var.always_ready_instances > 0 ? [var.always_ready_instances] : []}",
        "always_ready_instances",
    ),
    Guard(APP, "dynamic.always_ready.content.0.name", '"http"', "the group of HTTP functions"),
    Guard(APP, f"{SIGN_IN}.default_provider", '"azureactivedirectory"', "entra_sign_in"),
    Guard(
        APP,
        "storage_container_endpoint",
        '"${azurerm_storage_account.app.primary_blob_endpoint}${azurerm_storage_container.code.name}"',
        "where the code is published to",
    ),
    Guard(
        APP,
        "site_config.0.application_insights_connection_string",
        "${azurerm_application_insights.app.connection_string}",
        "telemetry",
    ),
    Guard(
        APP, "site_config.0.dynamic.ip_restriction.content.0.ip_address", "${ip_restriction.value}", "allowed_ip_ranges"
    ),
    Guard("azurerm_service_plan.app", "os_type", '"Linux"', "Flex Consumption"),
    Guard("azurerm_application_insights.app", "workspace_id", "${local.log_analytics_workspace_id}", "one workspace"),
    Guard(
        "azurerm_monitor_diagnostic_setting.openai", "for_each", "${azurerm_cognitive_account.openai}", "every account"
    ),
    Guard("azurerm_monitor_diagnostic_setting.openai", "target_resource_id", "${each.value.id}", "every account"),
    Guard(
        "azurerm_monitor_diagnostic_setting.openai",
        "dynamic.enabled_log.content.0.category",
        "${enabled_log.value}",
        "the listed categories",
    ),
    Guard(
        "azurerm_monitor_diagnostic_setting.app",
        "target_resource_id",
        "${azurerm_function_app_flex_consumption.app.id}",
        "the app's metrics and sign-ins",
    ),
    Guard(ALERT, "scopes", ["${local.log_analytics_workspace_id}"], "where the streams are recorded"),
    Guard(
        ALERT,
        "criteria.0.query",
        '"${local.streams_query}${templatefile("${path.module}/queries/${each.value.query}.kql", '
        'var.alert_thresholds)}"',
        "alert_thresholds",
    ),
    Guard(ALERT, "skip_query_validation", True, "the columns exist after the first telemetry only"),
    Guard("local", "alerts.failing.query", '"alert_failing"', "the rule of that name"),
    Guard("local", "alerts.silent.query", '"alert_silent"', "the rule of that name"),
    Guard("local", "alerts.rate-limited.query", '"alert_rate_limited"', "the rule of that name"),
    Guard(
        "azurerm_monitor_action_group.main", "dynamic.email_receiver.for_each", "${var.alert_emails}", "alert_emails"
    ),
    Guard(
        "azurerm_monitor_action_group.main",
        "dynamic.email_receiver.content.0.email_address",
        "${email_receiver.value}",
        "alert_emails",
    ),
    *(
        Guard(
            f"azurerm_monitor_diagnostic_setting.{name}",
            "log_analytics_workspace_id",
            "${local.log_analytics_workspace_id}",
            "one workspace",
        )
        for name in ("openai", "storage", "app")
    ),
    # ---- Defaults that decide about access and cost ----
    Guard("variable.deploy_code", "default", True, "one apply publishes"),
    Guard("variable.check_health", "default", True, "an app that does not start fails the apply"),
    Guard("variable.remote_build", "default", True, "needs no pip"),
    Guard("variable.rolling_updates", "default", False, "a preview"),
    Guard("variable.closed_storage", "default", False, "needs a network"),
    Guard("variable.zone_redundant", "default", False, "cost"),
    Guard("variable.lock", "default", False, "destroy"),
    Guard("variable.request_response_logs", "default", False, "cost"),
    Guard("variable.http_concurrency", "default", 100, "Azure's default is one stream an instance"),
    Guard("variable.maximum_instance_count", "default", 40, "cost"),
    Guard("variable.always_ready_instances", "default", 0, "cost"),
    Guard("variable.log_retention_in_days", "default", 30, "cost"),
    Guard("variable.daily_log_cap_in_gb", "default", 1, "cost"),
    Guard("variable.content_filter", "default", '"default"', "Azure's own"),
]

# What keeps a private endpoint as it was created, in the three resources.
GUARDS += [
    Guard(f"azurerm_private_endpoint.{name}", path, expected, why)
    for name, target, kind in (
        ("openai", "azurerm_cognitive_account.openai[each.key]", "account"),
        ("app", APP, "sites"),
        ("storage", STORAGE, "blob"),
    )
    for path, expected, why in (
        ("lifecycle.0.ignore_changes", ["private_dns_zone_group"], "in many landing zones Azure Policy adds the group"),
        ("private_service_connection.0.private_connection_resource_id", f"${{{target}.id}}", "the right resource"),
        ("private_service_connection.0.subresource_names", [f'"{kind}"'], "the right service of the resource"),
        ("subnet_id", "${var.private_endpoints.subnet_id}", "the endpoints' subnet"),
    )
]

# The app's three roles, one more where callers' limits are shared in a table, and no others.
ROLES = {
    "storage": ("Storage Blob Data Owner", "${azurerm_storage_account.app.id}"),
    "openai": ("Cognitive Services OpenAI User", "${each.value.id}"),
    "telemetry": ("Monitoring Metrics Publisher", "${azurerm_application_insights.app.id}"),
    "limits": ("Storage Table Data Contributor", "${azurerm_storage_account.app.id}"),
}

# The settings that the app and its host get from Terraform, and their expressions.
APP_SETTINGS = {
    "AzureWebJobsStorage__blobServiceUri": "azurerm_storage_account.app.primary_blob_endpoint",
    "AzureWebJobsStorage__credential": '"managedidentity"',
    "AzureWebJobsStorage__clientId": "azurerm_user_assigned_identity.app.client_id",
    "AZURE_CLIENT_ID": "azurerm_user_assigned_identity.app.client_id",
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": '"ClientId=${azurerm_user_assigned_identity.app.client_id};'
    'Authorization=AAD"',
    "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY": '"true"',
    "OTEL_TRACES_SAMPLER": '"always_on"',
}

# The defaults of an account and of a model that decide about access, cost and what happens when Azure retires a model.
MODEL_DEFAULTS = {
    "kind": '"AIServices"',
    "project_management_enabled": "false",
    "format": '"OpenAI"',
    "sku": '"GlobalStandard"',
    "capacity": "50",
    "version_upgrade_option": '"OnceCurrentVersionExpired"',
}

# Values that the regular expressions of a variable's validations must accept and reject.
SAMPLES: dict[str, tuple[list[str], list[str]]] = {
    "cors_allowed_origins": (
        ["https://www.example.com", "http://localhost:3000"],
        ["*", "https://*.example.com", "https://*", "https://www.example.com/page", "www.example.com", "ftp://a.b"],
    ),
    "project": (["relay", "a1"], ["Relay", "1a", "a", "relay-1", "elevenchars", "rElay"]),
    "environment": (["dev", "prod2"], ["d-v", "Prod", "d", "ninechars"]),
}


class Configuration:
    """The blocks of Terraform files, given by name and text."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.text = "\n".join(files[name] for name in sorted(files))
        self.blocks: dict[str, dict[str, Any]] = {"local": {}}
        for text in files.values():
            for address, body in _blocks(text):
                if address == "local":
                    self.blocks["local"].update(body)
                else:
                    self.blocks[address] = body

    def value(self, address: str, path: str) -> object:
        """The value at `path` of the block at `address`, or MISSING."""
        value: Any = self.blocks.get(address, MISSING)
        steps = path.split(".")
        while steps and value != MISSING:
            step = steps.pop(0)
            if step == "dynamic":
                kind = steps.pop(0)
                found = [block[kind] for block in value.get("dynamic", []) if kind in block]
                value = found[0] if found else MISSING
            elif step.isdigit():
                value = value[int(step)] if isinstance(value, list) and int(step) < len(value) else MISSING
            else:
                value = value.get(step, MISSING) if isinstance(value, dict) else MISSING
        return value


@lru_cache(maxsize=1024)
def parse_hcl(text: str) -> dict[str, Any]:
    """The blocks of an HCL document; string values keep the quotes that the parser includes, names do not.

    The result is shared between callers, which must not change it.
    """
    parsed: dict[str, Any] = _unquote_names(hcl2.loads(text))
    return parsed


def _unquote_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name.strip('"'): _unquote_names(inner)
            for name, inner in value.items()
            if name not in ("__is_block__", "__comments__", "__inline_comments__")
        }
    if isinstance(value, list):
        return [_unquote_names(inner) for inner in value]
    return value


def _blocks(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and body of each block of a file."""
    # Block by block, as `terraform fmt` leaves them, so that a changed file is parsed where it changed only.
    for block in re.findall(r"(?ms)^\w[^\n]*\{(?:\n.*?^\}|[^\n]*\})$", text):
        yield from _block(block)


def _block(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for section, blocks in parse_hcl(text).items():
        for block in blocks:
            if section in ("terraform", "locals"):
                yield {"locals": "local"}.get(section, section), block
            elif section in ("resource", "data"):
                prefix = "data." if section == "data" else ""
                yield from (
                    (f"{prefix}{kind}.{name}", body) for kind, named in block.items() for name, body in named.items()
                )
            else:
                yield from ((f"{section}.{name}", body) for name, body in block.items())


def read_files() -> dict[str, str]:
    """The project's Terraform files, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(INFRA.glob("*.tf"))}


def violations(files: Mapping[str, str]) -> list[str]:
    """One line for each guard that the files violate."""
    configuration = Configuration(files)
    return [
        *(
            f"{guard.address}: {guard.path} is {actual!r}, not {guard.expected!r} ({guard.why})"
            for guard in GUARDS
            if (actual := configuration.value(guard.address, guard.path))
            != (MISSING if guard.expected is None else guard.expected)
        ),
        *_role_violations(configuration),
        *_setting_violations(configuration),
        *_lock_violations(configuration),
        *_sample_violations(configuration),
        *_reference_violations(configuration),
        *_model_default_violations(configuration),
    ]


def _role_violations(configuration: Configuration) -> Iterator[str]:
    found = {
        address.split(".")[1]: (
            str(body.get("role_definition_name", MISSING)).strip('"'),
            body.get("scope"),
        )
        for address, body in configuration.blocks.items()
        if address.startswith("azurerm_role_assignment.")
    }
    if found != ROLES:
        yield f"azurerm_role_assignment: {found}, not {ROLES}"
    for address, body in configuration.blocks.items():
        if address.startswith("azurerm_role_assignment."):
            principal = (body.get("principal_id"), body.get("principal_type"))
            if principal != ("${azurerm_user_assigned_identity.app.principal_id}", '"ServicePrincipal"'):
                yield f"{address}: another principal, {principal}"


def _setting_violations(configuration: Configuration) -> Iterator[str]:
    settings = str(configuration.value("local", "app_settings"))
    for name, expression in APP_SETTINGS.items():
        if not re.search(rf"\b{name} = {re.escape(expression)}[,}}]", settings):
            yield f"local.app_settings: {name} is not {expression}"
    for name in ("AzureWebJobsStorage", "AzureWebJobsStorage__accountName", "DEPLOYMENT_STORAGE_CONNECTION_STRING"):
        if re.search(rf"\b{name} =", settings):
            yield f"local.app_settings: {name} leaves no plan empty, or makes the host ask for a key"
    if 'var.entra_sign_in == null ? {} : {HTTP_AUTH_LEVEL = "anonymous"}' not in settings:
        yield "local.app_settings: the functions require no key, or one in addition to the sign-in"


def _lock_violations(configuration: Configuration) -> Iterator[str]:
    """The lock must go before anything that an option, or destroy, removes."""
    depended = configuration.value("azurerm_management_lock.main", "depends_on")
    text = configuration.text
    for kind, name in sorted(re.findall(r'(?m)^resource "(azurerm_\w+)" "(\w+)"', text)):
        address = f"{kind}.{name}"
        used = {f"${{{address}}}"} <= set(depended if isinstance(depended, list) else [])
        others = text.replace(f'resource "{kind}" "{name}"', "").count(f"{address}[") + text.count(f"{address}.")
        if kind != "azurerm_management_lock" and not used and others == 0 and kind != "azurerm_role_assignment":
            yield f"azurerm_management_lock.main: {address} is missing in depends_on, and nothing else refers to it"


def _sample_violations(configuration: Configuration) -> Iterator[str]:
    for name, (accepted, rejected) in SAMPLES.items():
        validations = configuration.value(f"variable.{name}", "validation")
        conditions = [str(rule["condition"]) for rule in validations] if isinstance(validations, list) else []
        patterns = [
            re.compile(pattern.replace("\\\\", "\\"))
            for condition in conditions
            for pattern in re.findall(r'regex\("([^"]*)"', condition)
        ]
        for value in accepted:
            if not all(pattern.search(value) for pattern in patterns):
                yield f"variable.{name}: rejects {value!r}"
        for value in rejected:
            if all(pattern.search(value) for pattern in patterns):
                yield f"variable.{name}: accepts {value!r}"


def _reference_violations(configuration: Configuration) -> Iterator[str]:
    """Locals and variables that are used and not defined, which only a plan would report."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", configuration.text)
    for name in sorted(set(re.findall(r"\blocal\.(\w+)", text)) - configuration.blocks["local"].keys()):
        yield f"local.{name} is not defined"
    for name in sorted(set(re.findall(r"\bvar\.(\w+)", text))):
        if f"variable.{name}" not in configuration.blocks:
            yield f"var.{name} is not declared"
    # The accounts and deployments that the resources are made from.
    for name, users in (("instances", (ACCOUNT,)), ("deployments", (DEPLOYMENT,))):
        members = set(re.findall(r"\b(\w+) = ", str(configuration.value("local", name))))
        used = {
            member
            for user in users
            for member in re.findall(r"each\.value\.(\w+)", str(configuration.blocks.get(user)))
        }
        if used - members:
            yield f"local.{name}: lacks {', '.join(sorted(used - members))}"
    backends = str(configuration.value("local", "app_settings"))
    for member in ("name", "endpoint", "deployment", "model", "priority"):
        if not re.search(rf"\b{member} = (deployment|local)", backends):
            yield f"local.app_settings: AZURE_OPENAI_BACKENDS lacks {member}"


def _model_default_violations(configuration: Configuration) -> Iterator[str]:
    declared = str(configuration.value("variable.open_ai_instances", "type"))
    for name, default in MODEL_DEFAULTS.items():
        if not re.search(rf"\b{name} = optional\(\w+, {re.escape(default)}\)", declared):
            yield f"variable.open_ai_instances: the default of {name} is not {default}"
