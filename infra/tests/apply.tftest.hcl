# Tests with apply: values that are known only after an apply, and the outputs.

mock_provider "azurerm" {
  source = "./tests/mocks"
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

run "apply" {
  command = apply

  assert {
    condition     = output.url == "https://mocked.azurewebsites.net" && output.chat_url == "https://mocked.azurewebsites.net/chat"
    error_message = "A URL is wrong."
  }

  assert {
    condition     = startswith(output.stream_command, "curl --no-buffer") && endswith(output.stream_command, "https://mocked.azurewebsites.net/stream") && strcontains(output.stream_command, "$(az functionapp keys list ")
    error_message = "stream_command does not stream, or does not fetch the key."
  }

  assert {
    condition     = strcontains(output.function_key_command, "--name ${output.function_app_name}") && strcontains(output.function_key_command, "--resource-group ${output.resource_group_name}") && strcontains(output.function_key_command, "--query functionKeys.default")
    error_message = "function_key_command is for another app."
  }

  assert {
    condition     = output.deployments["openai-1/gpt-5.4-mini"].endpoint == "https://oai-relay-dev-${local.name_hash}.openai.azure.com/"
    error_message = "The output deployments lacks the deployment, or its endpoint is wrong."
  }

  assert {
    condition     = startswith(output.publish_command, "python3 publish.py deploy --subscription 00000000-0000-0000-0000-000000000003 ") && endswith(output.publish_command, "--url https://mocked.azurewebsites.net --update-strategy Recreate")
    error_message = "publish_command is wrong."
  }

  assert {
    condition     = alltrue([for link in values(output.portal_links) : startswith(link, "https://portal.azure.com/#@00000000-0000-0000-0000-000000000004/resource/subscriptions/")]) && keys(output.portal_links) == ["application_insights", "function_app", "resource_group", "workbook"]
    error_message = "A portal link is wrong or missing."
  }

  assert {
    condition     = !can(regex("(?i)(InstrumentationKey|AccountKey|SharedAccess)=", jsonencode([output.url, output.stream_command, output.function_key_command, output.deployments, output.publish_command, output.portal_links])))
    error_message = "An output contains a secret."
  }

  assert {
    condition     = azurerm_function_app_flex_consumption.app.app_settings["AzureWebJobsStorage__clientId"] == azurerm_user_assigned_identity.app.client_id
    error_message = "The app uses another identity."
  }
}

run "outputs_are_stable" {
  command = plan

  assert {
    condition     = output.url == run.apply.url && output.publish_command == run.apply.publish_command && output.function_app_name == run.apply.function_app_name && output.portal_links == run.apply.portal_links
    error_message = "An output changes in the next plan."
  }
}

run "with_virtual_network" {
  command = apply

  variables {
    vnet_integration = {}
    alert_emails     = ["a@example.com"]
    monthly_budget   = 100
  }

  assert {
    condition     = length(azurerm_subnet.app) == 1 && azurerm_function_app_flex_consumption.app.virtual_network_subnet_id == azurerm_subnet.app[0].id && one(one(azurerm_cognitive_account.openai["openai-1"].network_acls).virtual_network_rules).subnet_id == azurerm_subnet.app[0].id
    error_message = "The virtual network is not created, or not used by the app and the account."
  }

  assert {
    condition     = length(azurerm_monitor_scheduled_query_rules_alert_v2.streams) == 3
    error_message = "The alert rules are not created."
  }
}
