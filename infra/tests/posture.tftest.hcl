# Security posture and defaults: no keys or passwords, TLS only, exactly three roles.

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

run "no_key_access" {
  command = plan

  assert {
    condition     = alltrue([for account in azurerm_cognitive_account.openai : account.local_auth_enabled == false])
    error_message = "An OpenAI account accepts keys."
  }

  assert {
    condition     = azurerm_storage_account.app.shared_access_key_enabled == false
    error_message = "The storage account accepts keys."
  }

  assert {
    condition     = azurerm_storage_account.app.default_to_oauth_authentication == true
    error_message = "The portal would access the storage account with a key."
  }

  assert {
    condition     = azurerm_storage_account.app.local_user_enabled == false
    error_message = "The storage account has local users."
  }

  assert {
    condition     = azurerm_storage_account.app.allow_nested_items_to_be_public == false
    error_message = "A blob could be made public."
  }

  assert {
    condition     = azurerm_storage_account.app.cross_tenant_replication_enabled == false
    error_message = "The storage account could be replicated into another tenant."
  }

  assert {
    condition     = azurerm_storage_container.code.container_access_type == "private"
    error_message = "The code package could be read anonymously."
  }

  assert {
    condition     = azurerm_application_insights.app.local_authentication_enabled == false
    error_message = "Application Insights accepts telemetry with an instrumentation key."
  }

  assert {
    condition     = azurerm_log_analytics_workspace.main[0].local_authentication_enabled == false
    error_message = "The workspace accepts keys."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.webdeploy_publish_basic_authentication_enabled == false
    error_message = "The app can be published with a password."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.storage_authentication_type == "UserAssignedIdentity" && azurerm_function_app_flex_consumption.app.storage_user_assigned_identity_id == azurerm_user_assigned_identity.app.id
    error_message = "The app does not access its storage by its identity."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.storage_access_key == null
    error_message = "The app has a storage key."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.identity[0].type == "UserAssigned" && azurerm_function_app_flex_consumption.app.identity[0].identity_ids == toset([azurerm_user_assigned_identity.app.id])
    error_message = "The app has another identity."
  }
}

run "tls_only" {
  command = plan

  assert {
    condition     = azurerm_function_app_flex_consumption.app.https_only == true
    error_message = "The app accepts plain HTTP."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.site_config[0].minimum_tls_version == "1.2" && azurerm_function_app_flex_consumption.app.site_config[0].scm_minimum_tls_version == "1.2"
    error_message = "The app accepts TLS below 1.2."
  }

  assert {
    condition     = azurerm_storage_account.app.https_traffic_only_enabled == true && azurerm_storage_account.app.min_tls_version == "TLS1_2"
    error_message = "The storage account accepts plain HTTP or TLS below 1.2."
  }
}

run "exactly_three_roles" {
  command = plan

  assert {
    condition     = { (azurerm_role_assignment.storage.role_definition_name) = azurerm_role_assignment.storage.scope, (azurerm_role_assignment.telemetry.role_definition_name) = azurerm_role_assignment.telemetry.scope } == { "Storage Blob Data Owner" = azurerm_storage_account.app.id, "Monitoring Metrics Publisher" = azurerm_application_insights.app.id }
    error_message = "The app has another role on its storage or telemetry."
  }

  assert {
    condition     = alltrue([for key, role in azurerm_role_assignment.openai : role.role_definition_name == "Cognitive Services OpenAI User" && role.scope == azurerm_cognitive_account.openai[key].id])
    error_message = "The app has another role on an OpenAI account."
  }

  assert {
    condition     = keys(azurerm_role_assignment.openai) == keys(azurerm_cognitive_account.openai)
    error_message = "The role assignments do not match the accounts."
  }

  assert {
    condition     = alltrue([for role in concat([azurerm_role_assignment.storage, azurerm_role_assignment.telemetry], values(azurerm_role_assignment.openai)) : role.principal_id == azurerm_user_assigned_identity.app.principal_id && role.principal_type == "ServicePrincipal"])
    error_message = "A role is assigned to another principal."
  }
}

run "flex_consumption_with_python" {
  command = plan

  assert {
    condition     = azurerm_service_plan.app.sku_name == "FC1" && azurerm_service_plan.app.os_type == "Linux"
    error_message = "The plan is not Flex Consumption."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.runtime_name == "python" && azurerm_function_app_flex_consumption.app.runtime_version == "3.13"
    error_message = "The runtime is not Python 3.13."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.http_concurrency == 100
    error_message = "Without explicit concurrency each stream needs a separate instance."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.instance_memory_in_mb == 2048 && azurerm_function_app_flex_consumption.app.maximum_instance_count == 40
    error_message = "Memory or the maximum instance count is wrong."
  }

  assert {
    condition     = length(azurerm_function_app_flex_consumption.app.always_ready) == 0
    error_message = "By default there are always-ready instances, which cost money when idle."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.storage_container_type == "blobContainer" && azurerm_function_app_flex_consumption.app.storage_container_endpoint == "https://mocked.blob.core.windows.net/code"
    error_message = "The app's code container is wrong."
  }

  assert {
    condition     = length(azurerm_function_app_flex_consumption.app.name) <= 32
    error_message = "The app's name is too long for the Functions host."
  }
}

run "app_settings" {
  command = plan

  assert {
    condition     = !contains(keys(local.app_settings), "AzureWebJobsStorage")
    error_message = "AzureWebJobsStorage is set: the host would prefer it to the identity."
  }

  assert {
    condition     = local.app_settings["AzureWebJobsStorage__blobServiceUri"] == azurerm_storage_account.app.primary_blob_endpoint && !contains(keys(local.app_settings), "AzureWebJobsStorage__accountName") && local.app_settings["AzureWebJobsStorage__credential"] == "managedidentity" && local.app_settings["AzureWebJobsStorage__clientId"] == azurerm_user_assigned_identity.app.client_id
    error_message = "The host does not access its storage by the identity."
  }

  assert {
    condition     = local.app_settings["AZURE_CLIENT_ID"] == azurerm_user_assigned_identity.app.client_id
    error_message = "AZURE_CLIENT_ID is not the app's identity."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.app_settings == tomap(local.app_settings)
    error_message = "The app settings differ from local.app_settings, which the tests check."
  }

  assert {
    condition     = !anytrue([for name in keys(local.app_settings) : can(regex("(?i)(key|secret|password|token|sas|connection_?string)$", name))])
    error_message = "A setting's name suggests a secret."
  }

  assert {
    condition     = !anytrue([for value in values(local.app_settings) : can(regex("(?i)(AccountKey|SharedAccess|InstrumentationKey|Password|sig)=", value))])
    error_message = "A setting contains a secret."
  }

  assert {
    condition     = length(setintersection(keys(local.app_settings), ["FUNCTIONS_WORKER_RUNTIME", "FUNCTIONS_EXTENSION_VERSION", "WEBSITE_RUN_FROM_PACKAGE", "SCM_DO_BUILD_DURING_DEPLOYMENT", "ENABLE_ORYX_BUILD", "WEBSITE_CONTENTAZUREFILECONNECTIONSTRING", "WEBSITE_CONTENTSHARE"])) == 0
    error_message = "Flex Consumption rejects one of the settings."
  }

  assert {
    condition     = !contains(keys(local.app_settings), "APPLICATIONINSIGHTS_CONNECTION_STRING") && azurerm_function_app_flex_consumption.app.site_config[0].application_insights_connection_string == azurerm_application_insights.app.connection_string
    error_message = "The connection string is not set in site_config, from where the provider reads it back, or would differ in every plan."
  }

  assert {
    condition     = local.app_settings["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"] == "ClientId=00000000-0000-0000-0000-000000000005;Authorization=AAD"
    error_message = "Telemetry is not authenticated by the identity."
  }

  assert {
    condition     = local.app_settings["PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY"] == "true"
    error_message = "The worker's telemetry is not enabled."
  }

  assert {
    condition     = local.app_settings["OTEL_TRACES_SAMPLER"] == "always_on"
    error_message = "The sampler does not record every stream."
  }

  assert {
    condition     = !contains(keys(local.app_settings), "HTTP_AUTH_LEVEL")
    error_message = "Without Entra sign-in the functions require no key."
  }
}

run "default_model" {
  command = plan

  assert {
    condition     = keys(azurerm_cognitive_deployment.model) == ["openai-1/gpt-5.4-mini"]
    error_message = "The default deployment is wrong."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].model[0].version == "2026-03-17" && azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].model[0].format == "OpenAI"
    error_message = "The model version is not pinned."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].sku[0].name == "GlobalStandard" && azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].sku[0].capacity == 50
    error_message = "Without capacity the deployment returns 429 after one short request."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].version_upgrade_option == "OnceCurrentVersionExpired"
    error_message = "The version would change early, or stop working when it is retired."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].kind == "AIServices" && !azurerm_cognitive_account.openai["openai-1"].project_management_enabled && azurerm_cognitive_account.openai["openai-1"].sku_name == "S0" && azurerm_cognitive_account.openai["openai-1"].location == "eastus2"
    error_message = "The account's kind, sku or region is wrong."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].custom_subdomain_name == azurerm_cognitive_account.openai["openai-1"].name
    error_message = "Without a custom subdomain the account does not accept Entra tokens."
  }

  assert {
    condition     = jsondecode(local.app_settings["AZURE_OPENAI_BACKENDS"]) == [{ name = "openai-1/gpt-5.4-mini", endpoint = "https://oai-relay-dev-${local.name_hash}.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 1, wire = "chat" }]
    error_message = "AZURE_OPENAI_BACKENDS does not match the deployment."
  }
}

run "monitoring" {
  command = plan

  assert {
    condition     = azurerm_log_analytics_workspace.main[0].daily_quota_gb == 1 && azurerm_application_insights.app.daily_data_cap_in_gb == 1
    error_message = "Telemetry has no daily cap."
  }

  assert {
    condition     = azurerm_application_insights.app.workspace_id == azurerm_log_analytics_workspace.main[0].id
    error_message = "Application Insights uses another workspace."
  }

  assert {
    condition     = keys(azurerm_monitor_diagnostic_setting.openai) == keys(azurerm_cognitive_account.openai) && azurerm_monitor_diagnostic_setting.app.target_resource_id == azurerm_function_app_flex_consumption.app.id && azurerm_monitor_diagnostic_setting.storage.target_resource_id == "${azurerm_storage_account.app.id}/blobServices/default"
    error_message = "A resource has no diagnostic setting."
  }

  assert {
    condition     = can(regex("^[0-9a-f]{8}-", azurerm_application_insights_workbook.streams.name)) && length(jsondecode(azurerm_application_insights_workbook.streams.data_json).items) == 7
    error_message = "The workbook's name or items are wrong."
  }

  assert {
    condition     = azurerm_application_insights_workbook.streams.source_id == lower(azurerm_application_insights_workbook.streams.source_id)
    error_message = "The provider rejects upper case in source_id."
  }

  assert {
    condition     = alltrue([for item in jsondecode(azurerm_application_insights_workbook.streams.data_json).items : item.type == 9 || strcontains(try(item.content.query, ""), lower(azurerm_application_insights.app.id))])
    error_message = "A query also includes other apps of the workspace."
  }

  assert {
    condition     = length(azurerm_monitor_action_group.main) == 0 && length(azurerm_monitor_scheduled_query_rules_alert_v2.streams) == 0
    error_message = "Alert rules are created without alert_emails."
  }
}

run "options_are_off_by_default" {
  command = plan

  assert {
    condition     = length(azurerm_virtual_network.main) == 0 && length(azurerm_subnet.app) == 0 && length(azurerm_private_endpoint.openai) == 0 && length(azurerm_private_endpoint.app) == 0
    error_message = "A network or private endpoint is created by default."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.virtual_network_subnet_id == null && azurerm_function_app_flex_consumption.app.public_network_access_enabled == true
    error_message = "The app is private or network-integrated by default."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.site_config[0].ip_restriction_default_action == "Allow" && length(azurerm_function_app_flex_consumption.app.site_config[0].ip_restriction) == 0
    error_message = "Addresses are restricted by default."
  }

  assert {
    condition     = length(azurerm_function_app_flex_consumption.app.auth_settings_v2) == 0 && length(azurerm_function_app_flex_consumption.app.site_config[0].cors) == 0
    error_message = "Sign-in or CORS is enabled by default."
  }

  assert {
    condition     = length(azurerm_consumption_budget_resource_group.main) == 0 && length(terraform_data.publish) == 0
    error_message = "A budget, or a publish step despite deploy_code = false, is created."
  }

  assert {
    condition     = length(terraform_data.settings) == 0 && length(azurerm_management_lock.main) == 0 && length(azurerm_cognitive_account_rai_policy.model) == 0 && length(azurerm_cognitive_account_customer_managed_key.openai) == 0 && length(azurerm_private_endpoint.storage) == 0
    error_message = "A lock, content filter, key or endpoint is created by default."
  }

  assert {
    condition     = azurerm_service_plan.app.zone_balancing_enabled == false && azurerm_storage_account.app.account_replication_type == "LRS" && length(azurerm_storage_account.app.network_rules) == 0 && azurerm_storage_account.app.public_network_access_enabled
    error_message = "Zone redundancy or closed storage is on by default."
  }

  assert {
    condition     = alltrue([for account in azurerm_cognitive_account.openai : account.network_acls[0].default_action == "Allow" && length(account.network_acls[0].virtual_network_rules) == 0])
    error_message = "An account's network rules are not written, and would stay as they were when the network is turned off."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].rai_policy_name == "Microsoft.DefaultV2"
    error_message = "The content filter is not written, and would stay as it was when another one is turned off."
  }

  assert {
    condition     = local.update_strategy == "Recreate" && !contains(local.publish_arguments, "--prebuilt")
    error_message = "Rolling updates or the prebuilt package are on by default."
  }
}

run "callers" {
  command = plan

  variables {
    callers = {
      team-a = { key_digests = ["0000000000000000000000000000000000000000000000000000000000000000"], models = ["gpt-5.4-mini"], limits = { streams = 2 } }
      team-b = { key_digests = ["1111111111111111111111111111111111111111111111111111111111111111"] }
    }
    caller_limits = { requests_per_minute = 60 }
    limits_store  = true
    token_prices  = { gpt = { input = 1, output = 2 } }
  }

  assert {
    condition = jsondecode(local.app_settings.CALLERS) == {
      team-a = { key_digests = ["0000000000000000000000000000000000000000000000000000000000000000"], models = ["gpt-5.4-mini"], limits = { streams = 2 } }
      team-b = { key_digests = ["1111111111111111111111111111111111111111111111111111111111111111"] }
    }
    error_message = "The app does not get the callers."
  }

  assert {
    condition     = jsondecode(local.app_settings.CALLER_LIMITS) == { requests_per_minute = 60 } && jsondecode(local.app_settings.TOKEN_PRICES) == { gpt = { input = 1, output = 2 } }
    error_message = "The app does not get the default limits or the prices."
  }

  assert {
    condition     = azurerm_role_assignment.limits[0].role_definition_name == "Storage Table Data Contributor" && endswith(local.app_settings.LIMITS_STORE, "/callerlimits")
    error_message = "The app has no table to count in."
  }

  assert {
    condition     = !contains(keys(local.app_settings), "ENTRA_SIGN_IN")
    error_message = "Without sign-in the app would believe headers that anyone can send."
  }
}
