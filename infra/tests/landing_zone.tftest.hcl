# Landing zone options, each tested separately: networks, names, tags, sign-in, alerts.

mock_provider "azurerm" {
  source          = "./tests/mocks"
  override_during = plan
}

# `terraform test` also loads a local terraform.tfvars, so every variable is pinned here.
variables {
  project                     = "relay"
  environment                 = "dev"
  location                    = "eastus2"
  resource_group_name         = null
  create_resource_group       = true
  name_pattern                = "{type}-{project}-{environment}-{hash}"
  names                       = {}
  tags                        = {}
  register_resource_providers = true
  open_ai_instances           = [{}]
  content_filter              = "default"
  customer_managed_key        = null
  instance_memory_in_mb       = 2048
  maximum_instance_count      = 40
  http_concurrency            = 100
  always_ready_instances      = 0
  zone_redundant              = false
  relay_settings              = {}
  chat_settings               = {}
  deploy_code                 = false
  check_health                = true
  remote_build                = true
  rolling_updates             = false
  python                      = "python3"
  vnet_integration            = null
  private_endpoints           = null
  closed_storage              = false
  lock                        = false
  allowed_ip_ranges           = []
  cors_allowed_origins        = []
  entra_sign_in               = null
  log_analytics_workspace_id  = null
  request_response_logs       = false
  log_retention_in_days       = 30
  daily_log_cap_in_gb         = 1
  alert_emails                = []
  alert_thresholds            = {}
  monthly_budget              = null
  callers                     = {}
  caller_limits               = {}
  limits_store                = false
  token_prices                = {}
}

run "new_virtual_network" {
  command = plan

  variables {
    vnet_integration = { address_space = "10.9.8.0/24" }
  }

  assert {
    condition     = azurerm_subnet.app[0].delegation[0].service_delegation[0].name == "Microsoft.App/environments" && azurerm_subnet.app[0].service_endpoint[0].service == "Microsoft.CognitiveServices"
    error_message = "The subnet lacks the delegation for Flex Consumption or the service endpoint of the accounts."
  }

  assert {
    condition     = azurerm_virtual_network.main[0].address_space == toset(["10.9.8.0/24"]) && azurerm_virtual_network.main[0].name == "vnet-relay-dev-${local.name_hash}" && azurerm_subnet.app[0].address_prefixes == tolist(["10.9.8.0/27"])
    error_message = "An address range is wrong."
  }

  assert {
    condition     = azurerm_subnet_network_security_group_association.app[0].subnet_id == azurerm_subnet.app[0].id
    error_message = "The subnet has no network security group."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.virtual_network_subnet_id == azurerm_subnet.app[0].id
    error_message = "The app is not integrated with the subnet."
  }

  assert {
    condition     = alltrue([for account in azurerm_cognitive_account.openai : account.network_acls[0].default_action == "Deny" && account.network_acls[0].bypass == "None" && one(account.network_acls[0].virtual_network_rules).subnet_id == azurerm_subnet.app[0].id && length(coalesce(account.network_acls[0].ip_rules, [])) == 0])
    error_message = "An account is reachable from outside the subnet."
  }

  assert {
    condition     = alltrue([for account in azurerm_cognitive_account.openai : account.public_network_access_enabled])
    error_message = "A service endpoint requires public network access on the account."
  }
}

run "virtual_network_in_another_region" {
  command = plan

  variables {
    location         = "West Europe"
    vnet_integration = {}
  }

  assert {
    condition     = azurerm_virtual_network.main[0].name == "vnet-relay-dev-${local.name_hash}-westeurope" && azurerm_cognitive_account.openai["openai-1"].name == "oai-relay-dev-${local.name_hash}-westeurope"
    error_message = "What is created before it is destroyed needs another name in another region."
  }
}

run "existing_subnet" {
  command = plan

  variables {
    vnet_integration = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
  }

  assert {
    condition     = length(azurerm_virtual_network.main) == 0 && length(azurerm_subnet.app) == 0 && azurerm_function_app_flex_consumption.app.virtual_network_subnet_id == "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps"
    error_message = "The existing subnet is not used."
  }

  assert {
    condition     = alltrue([for account in azurerm_cognitive_account.openai : account.network_acls[0].default_action == "Deny" && one(account.network_acls[0].virtual_network_rules).subnet_id == "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps"])
    error_message = "An account is reachable from outside the subnet."
  }
}

run "private_endpoints" {
  command = plan

  variables {
    vnet_integration  = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints", openai_dns_zone_ids = ["/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.openai.azure.com", "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.cognitiveservices.azure.com", "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.services.ai.azure.com"] }
  }

  assert {
    condition     = alltrue([for account in azurerm_cognitive_account.openai : account.public_network_access_enabled == false && account.network_acls[0].default_action == "Deny" && length(account.network_acls[0].virtual_network_rules) == 0])
    error_message = "An account is publicly accessible."
  }

  assert {
    condition     = keys(azurerm_private_endpoint.openai) == keys(azurerm_cognitive_account.openai) && azurerm_private_endpoint.openai["openai-1"].subnet_id == "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints" && azurerm_private_endpoint.openai["openai-1"].private_service_connection[0].private_connection_resource_id == azurerm_cognitive_account.openai["openai-1"].id && azurerm_private_endpoint.openai["openai-1"].private_service_connection[0].subresource_names == tolist(["account"])
    error_message = "An account has no private endpoint, or it is wrong."
  }

  assert {
    condition     = azurerm_private_endpoint.openai["openai-1"].private_dns_zone_group[0].private_dns_zone_ids == tolist(["/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.openai.azure.com", "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.cognitiveservices.azure.com", "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.services.ai.azure.com"])
    error_message = "The private endpoint is not in all three DNS zones."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.public_network_access_enabled == true && length(azurerm_private_endpoint.app) == 0
    error_message = "The app is private, but only the accounts should be."
  }
}

run "private_app" {
  command = plan

  variables {
    vnet_integration  = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints", function_app = true, function_app_dns_zone_ids = ["/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.azurewebsites.net"] }
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.public_network_access_enabled == false
    error_message = "The app is publicly accessible."
  }

  assert {
    condition     = azurerm_private_endpoint.app[0].private_service_connection[0].subresource_names == tolist(["sites"]) && azurerm_private_endpoint.app[0].private_service_connection[0].private_connection_resource_id == azurerm_function_app_flex_consumption.app.id && azurerm_private_endpoint.app[0].private_dns_zone_group[0].private_dns_zone_ids == tolist(["/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.azurewebsites.net"])
    error_message = "The app has no private endpoint, or it is wrong."
  }

  assert {
    condition     = length(azurerm_private_endpoint.openai["openai-1"].private_dns_zone_group) == 0
    error_message = "A DNS zone group is created without zone ids; Azure Policy would add it."
  }
}

run "closed_storage" {
  command = plan

  variables {
    vnet_integration = {}
    closed_storage   = true
  }

  assert {
    condition     = one(azurerm_storage_account.app.network_rules).default_action == "Deny" && one(azurerm_storage_account.app.network_rules).bypass == toset(["None"]) && one(azurerm_storage_account.app.network_rules).virtual_network_subnet_ids == toset([azurerm_subnet.app[0].id])
    error_message = "The storage is reachable from outside the subnet, or not from it."
  }

  assert {
    condition     = [for endpoint in azurerm_subnet.app[0].service_endpoint : endpoint.service] == ["Microsoft.CognitiveServices", "Microsoft.Storage"]
    error_message = "The subnet lacks the service endpoint of the storage."
  }

  assert {
    condition     = length(azurerm_private_endpoint.storage) == 0 && azurerm_storage_account.app.public_network_access_enabled
    error_message = "A service endpoint requires public network access on the storage."
  }
}

run "closed_storage_with_private_endpoints" {
  command = plan

  variables {
    vnet_integration  = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints", storage_dns_zone_ids = ["/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.blob.core.windows.net"] }
    closed_storage    = true
  }

  assert {
    condition     = azurerm_storage_account.app.public_network_access_enabled == false && length(one(azurerm_storage_account.app.network_rules).virtual_network_subnet_ids) == 0
    error_message = "The storage is reachable in another way than by its endpoint."
  }

  assert {
    condition     = azurerm_private_endpoint.storage[0].private_service_connection[0].private_connection_resource_id == azurerm_storage_account.app.id && azurerm_private_endpoint.storage[0].private_service_connection[0].subresource_names == tolist(["blob"]) && length(azurerm_private_endpoint.storage[0].private_dns_zone_group[0].private_dns_zone_ids) == 1
    error_message = "The storage's private endpoint is wrong."
  }
}

run "incomplete_dns_zones_warn" {
  command = plan

  variables {
    vnet_integration  = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints", openai_dns_zone_ids = ["/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/privateDnsZones/privatelink.openai.azure.com"] }
  }

  expect_failures = [check.private_dns_zones]
}

run "zone_redundant" {
  command = plan

  variables {
    zone_redundant         = true
    always_ready_instances = 2
  }

  assert {
    condition     = azurerm_service_plan.app.zone_balancing_enabled && azurerm_storage_account.app.account_replication_type == "ZRS"
    error_message = "The plan or the storage is in one zone only."
  }
}

run "lock" {
  command = plan

  variables {
    lock = true
  }

  assert {
    condition     = azurerm_management_lock.main[0].lock_level == "CanNotDelete" && azurerm_management_lock.main[0].scope == azurerm_resource_group.main[0].id
    error_message = "The resource group is not locked."
  }
}

run "request_response_logs" {
  command = plan

  variables {
    request_response_logs = true
  }

  assert {
    condition     = alltrue([for setting in azurerm_monitor_diagnostic_setting.openai : toset([for log in setting.enabled_log : log.category]) == toset(["Audit", "RequestResponse"])])
    error_message = "The calls are not logged."
  }
}

run "publishing_options" {
  command = plan

  variables {
    rolling_updates = true
    remote_build    = false
    check_health    = false
  }

  assert {
    condition     = contains(local.publish_arguments, "--prebuilt") && contains(local.publish_arguments, "--no-health") && local.publish_arguments[index(local.publish_arguments, "--update-strategy") + 1] == "RollingUpdate"
    error_message = "An option does not reach the publish script."
  }

  assert {
    condition     = !contains(local.app_arguments, "--prebuilt") && contains(local.app_arguments, "RollingUpdate")
    error_message = "The settings step gets wrong arguments."
  }
}

run "allowed_ip_ranges" {
  command = plan

  variables {
    allowed_ip_ranges = ["203.0.113.0/24", "198.51.100.7/32"]
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.site_config[0].ip_restriction_default_action == "Deny"
    error_message = "Other addresses may call the app."
  }

  assert {
    condition     = [for rule in azurerm_function_app_flex_consumption.app.site_config[0].ip_restriction : [rule.ip_address, rule.action, rule.priority]] == [["203.0.113.0/24", "Allow", 100], ["198.51.100.7/32", "Allow", 101]]
    error_message = "The IP restrictions differ from allowed_ip_ranges."
  }
}

run "cors" {
  command = plan

  variables {
    cors_allowed_origins = ["https://www.example.com"]
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.site_config[0].cors[0].allowed_origins == toset(["https://www.example.com"])
    error_message = "The allowed origins differ from cors_allowed_origins."
  }
}

run "entra_sign_in" {
  command = plan

  variables {
    entra_sign_in = { client_id = "00000000-0000-0000-0000-00000000000a", allowed_groups = ["00000000-0000-0000-0000-00000000000b"] }
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.auth_settings_v2[0].auth_enabled && azurerm_function_app_flex_consumption.app.auth_settings_v2[0].require_authentication && azurerm_function_app_flex_consumption.app.auth_settings_v2[0].require_https
    error_message = "Sign-in is not required."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.auth_settings_v2[0].unauthenticated_action == "RedirectToLoginPage" && azurerm_function_app_flex_consumption.app.auth_settings_v2[0].excluded_paths == tolist(["/health"])
    error_message = "A path other than /health is excluded from sign-in."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.auth_settings_v2[0].active_directory_v2[0].tenant_auth_endpoint == "https://login.microsoftonline.com/00000000-0000-0000-0000-000000000004/v2.0"
    error_message = "Sign-in uses another tenant."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.auth_settings_v2[0].active_directory_v2[0].allowed_audiences == tolist(["00000000-0000-0000-0000-00000000000a", "api://00000000-0000-0000-0000-00000000000a"])
    error_message = "Tokens for other apps are accepted."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.auth_settings_v2[0].active_directory_v2[0].allowed_groups == tolist(["00000000-0000-0000-0000-00000000000b"])
    error_message = "Members of other groups may call the app."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.auth_settings_v2[0].active_directory_v2[0].client_secret_setting_name == null
    error_message = "Sign-in requires a client secret."
  }

  assert {
    condition     = local.app_settings["HTTP_AUTH_LEVEL"] == "anonymous"
    error_message = "A function key is required in addition to the sign-in."
  }

  assert {
    condition     = azurerm_monitor_diagnostic_setting.app.enabled_log != null && one(azurerm_monitor_diagnostic_setting.app.enabled_log).category == "AppServiceAuthenticationLogs"
    error_message = "Sign-ins are not logged."
  }

  assert {
    condition     = output.function_key_command == null && strcontains(output.stream_command, "Authorization: Bearer $(az account get-access-token") && !strcontains(output.stream_command, "x-functions-key")
    error_message = "The commands still use a function key."
  }
}

run "existing_workspace" {
  command = plan

  variables {
    log_analytics_workspace_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.OperationalInsights/workspaces/Central"
  }

  assert {
    condition     = length(azurerm_log_analytics_workspace.main) == 0 && azurerm_application_insights.app.workspace_id == "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.OperationalInsights/workspaces/Central"
    error_message = "Another workspace is created or used."
  }

  assert {
    condition     = alltrue([for setting in concat([azurerm_monitor_diagnostic_setting.app, azurerm_monitor_diagnostic_setting.storage], values(azurerm_monitor_diagnostic_setting.openai)) : setting.log_analytics_workspace_id == "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.OperationalInsights/workspaces/Central"])
    error_message = "Logs are sent to another workspace."
  }
}

run "existing_resource_group" {
  command = plan

  variables {
    create_resource_group = false
    resource_group_name   = "given"
    monthly_budget        = 50
  }

  assert {
    condition     = length(azurerm_resource_group.main) == 0 && azurerm_function_app_flex_consumption.app.resource_group_name == "given" && azurerm_storage_account.app.resource_group_name == "given"
    error_message = "The existing resource group is not used."
  }

  assert {
    condition     = azurerm_consumption_budget_resource_group.main[0].resource_group_id == "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/given"
    error_message = "The budget is for another resource group."
  }
}

run "names_and_tags" {
  command = plan

  variables {
    environment  = "prod"
    name_pattern = "{project}-{environment}-{type}-{location}"
    names        = { service_plan = "custom-plan" }
    tags         = { owner = "team" }
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.name == "relay-prod-func-eastus2" && azurerm_resource_group.main[0].name == "relay-prod-rg-eastus2"
    error_message = "A name does not follow name_pattern."
  }

  assert {
    condition     = azurerm_storage_account.app.name == "relayprodsteastus2"
    error_message = "The storage account's name does not follow name_pattern."
  }

  assert {
    condition     = azurerm_service_plan.app.name == "custom-plan"
    error_message = "A name set in names is not used."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.tags == tomap({ project = "relay", environment = "prod", owner = "team" }) && azurerm_cognitive_account.openai["openai-1"].tags == azurerm_function_app_flex_consumption.app.tags && azurerm_storage_account.app.tags == azurerm_function_app_flex_consumption.app.tags && azurerm_application_insights.app.tags == azurerm_function_app_flex_consumption.app.tags
    error_message = "A resource has the wrong tags."
  }
}

run "long_storage_name_ends_in_the_hash" {
  command = plan

  variables {
    project     = "longproj10"
    environment = "staging1"
  }

  assert {
    condition     = length(azurerm_storage_account.app.name) == 24 && endswith(azurerm_storage_account.app.name, local.name_hash) && can(regex("^[a-z0-9]+$", azurerm_storage_account.app.name))
    error_message = "The storage account's name is too long, or lacks the hash."
  }
}

run "function_app_name_too_long" {
  command = plan

  variables {
    name_pattern = "{type}-of-the-department-{project}-{environment}-{hash}"
  }

  expect_failures = [azurerm_function_app_flex_consumption.app]
}

run "alerts" {
  command = plan

  variables {
    alert_emails     = ["a@example.com", "b@example.com"]
    alert_thresholds = { failed_percent = 25 }
    monthly_budget   = 100
  }

  assert {
    condition     = keys(azurerm_monitor_scheduled_query_rules_alert_v2.streams) == ["failing", "rate-limited", "silent"]
    error_message = "The alert rules differ from the expected ones."
  }

  assert {
    condition     = [for receiver in azurerm_monitor_action_group.main[0].email_receiver : receiver.email_address] == ["a@example.com", "b@example.com"]
    error_message = "An address is missing in the action group."
  }

  assert {
    condition     = alltrue([for alert in azurerm_monitor_scheduled_query_rules_alert_v2.streams : alert.action[0].action_groups == tolist([azurerm_monitor_action_group.main[0].id]) && alert.scopes == tolist([azurerm_log_analytics_workspace.main[0].id]) && alert.criteria[0].operator == "GreaterThan" && alert.criteria[0].threshold == 0])
    error_message = "An alert rule has no action group, or the wrong scope or criteria."
  }

  assert {
    condition     = strcontains(azurerm_monitor_scheduled_query_rules_alert_v2.streams["failing"].criteria[0].query, "> 25") && strcontains(azurerm_monitor_scheduled_query_rules_alert_v2.streams["rate-limited"].criteria[0].query, "> 10") && strcontains(azurerm_monitor_scheduled_query_rules_alert_v2.streams["silent"].criteria[0].query, "completed == 0")
    error_message = "A query does not contain its threshold."
  }

  assert {
    condition     = azurerm_consumption_budget_resource_group.main[0].amount == 100 && alltrue([for notice in azurerm_consumption_budget_resource_group.main[0].notification : notice.contact_emails == tolist(["a@example.com", "b@example.com"])]) && length(azurerm_consumption_budget_resource_group.main[0].notification) == 2
    error_message = "The budget has the wrong amount or notifications."
  }

  assert {
    condition     = can(regex("^20[0-9]{2}-[01][0-9]-01T00:00:00Z$", azurerm_consumption_budget_resource_group.main[0].time_period[0].start_date))
    error_message = "The budget does not start on the first day of a month."
  }
}

run "always_ready" {
  command = plan

  variables {
    always_ready_instances = 2
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.always_ready[0].name == "http" && azurerm_function_app_flex_consumption.app.always_ready[0].instance_count == 2
    error_message = "The always-ready instances are not set."
  }
}
