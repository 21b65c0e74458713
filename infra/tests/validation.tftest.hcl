# Each validation of each variable rejects an invalid value.

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

run "project" {
  command = plan

  variables {
    project = "Relay"
  }

  expect_failures = [var.project]
}

run "project_too_long" {
  command = plan

  variables {
    project = "relayrelayrelay"
  }

  expect_failures = [var.project]
}

run "environment" {
  command = plan

  variables {
    environment = "d-v"
  }

  expect_failures = [var.environment]
}

run "location" {
  command = plan

  variables {
    location = "east/us"
  }

  expect_failures = [var.location]
}

run "resource_group_name" {
  command = plan

  variables {
    resource_group_name = "ends.in.a.full.stop."
  }

  expect_failures = [var.resource_group_name]
}

run "create_resource_group" {
  command = plan

  variables {
    create_resource_group = false
  }

  expect_failures = [var.create_resource_group]
}

run "name_pattern_without_type" {
  command = plan

  variables {
    name_pattern = "{project}-{environment}"
  }

  expect_failures = [var.name_pattern]
}

run "name_pattern_with_unknown_placeholder" {
  command = plan

  variables {
    name_pattern = "{type}-{owner}"
  }

  expect_failures = [var.name_pattern]
}

run "names_unknown_resource" {
  command = plan

  variables {
    names = { database = "x" }
  }

  expect_failures = [var.names]
}

run "names_function_app" {
  command = plan

  variables {
    names = { function_app = "a-name-that-is-longer-than-thirty-two" }
  }

  expect_failures = [var.names]
}

run "names_storage_account" {
  command = plan

  variables {
    names = { storage_account = "Has-Capitals" }
  }

  expect_failures = [var.names]
}

run "tags_invalid_character" {
  command = plan

  variables {
    tags = { "a<b" = "c" }
  }

  expect_failures = [var.tags]
}

run "tags_reserved_prefix" {
  command = plan

  variables {
    tags = { "hidden-link: x" = "y" }
  }

  expect_failures = [var.tags]
}

run "instances_empty" {
  command = plan

  variables {
    open_ai_instances = []
  }

  expect_failures = [var.open_ai_instances]
}

run "models_empty" {
  command = plan

  variables {
    open_ai_instances = [{ models = [] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instances_too_many" {
  command = plan

  variables {
    open_ai_instances = [for number in range(101) : { name = "openai${number}" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_name" {
  command = plan

  variables {
    open_ai_instances = [{ name = "has space" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_names_duplicate" {
  command = plan

  variables {
    open_ai_instances = [{ name = "one" }, { name = "one" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_region" {
  command = plan

  variables {
    open_ai_instances = [{ region = "" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_sku" {
  command = plan

  variables {
    open_ai_instances = [{ sku = "F0" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_subdomain" {
  command = plan

  variables {
    open_ai_instances = [{ custom_subdomain_name = "Has_Capitals" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_subdomains_duplicate" {
  command = plan

  variables {
    open_ai_instances = [{ custom_subdomain_name = "one" }, { name = "two", custom_subdomain_name = "one" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_priority" {
  command = plan

  variables {
    open_ai_instances = [{ priority = 1.5 }]
  }

  expect_failures = [var.open_ai_instances]
}

run "deployment_names_duplicate" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "a1", version = "1" }, { name = "b1", version = "1", deployment_name = "A1" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_name" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "has space", version = "1" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_version_empty" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_sku" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", sku = "GlobalBatch" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_wire" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", wire = "completions" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_capacity" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", capacity = 0 }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_version_upgrade_option" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", version_upgrade_option = "Never" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "instance_memory_in_mb" {
  command = plan

  variables {
    instance_memory_in_mb = 1024
  }

  expect_failures = [var.instance_memory_in_mb]
}

run "maximum_instance_count" {
  command = plan

  variables {
    maximum_instance_count = 0
  }

  expect_failures = [var.maximum_instance_count]
}

run "http_concurrency_of_one" {
  command = plan

  variables {
    http_concurrency = 1
  }

  expect_failures = [var.http_concurrency]
}

run "always_ready_above_the_maximum" {
  command = plan

  variables {
    always_ready_instances = 41
  }

  expect_failures = [var.always_ready_instances]
}

run "relay_setting_unknown" {
  command = plan

  variables {
    relay_settings = { AZURE_OPENAI_API_KEY = "1" }
  }

  expect_failures = [var.relay_settings]
}

run "chat_setting_unknown" {
  command = plan

  variables {
    chat_settings = { MAX_OUTPUT_TOKENS = "1" }
  }

  expect_failures = [var.chat_settings]
}

run "relay_setting_out_of_range" {
  command = plan

  variables {
    relay_settings = { STREAM_DEADLINE_SECONDS = "9999" }
  }

  expect_failures = [var.relay_settings]
}

run "relay_setting_not_a_number" {
  command = plan

  variables {
    relay_settings = { MAX_OUTPUT_TOKENS = "many" }
  }

  expect_failures = [var.relay_settings]
}

run "python" {
  command = plan

  variables {
    python = " "
  }

  expect_failures = [var.python]
}

run "vnet_subnet_id" {
  command = plan

  variables {
    vnet_integration = { subnet_id = "apps" }
  }

  expect_failures = [var.vnet_integration]
}

run "vnet_address_space_too_small" {
  command = plan

  variables {
    vnet_integration = { address_space = "10.0.0.0/28" }
  }

  expect_failures = [var.vnet_integration]
}

run "private_endpoints_subnet_id" {
  command = plan

  variables {
    private_endpoints = { subnet_id = "endpoints" }
    vnet_integration  = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
  }

  expect_failures = [var.private_endpoints]
}

run "private_endpoints_dns_zone_id" {
  command = plan

  variables {
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints", openai_dns_zone_ids = ["privatelink.openai.azure.com"] }
    vnet_integration  = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/apps" }
  }

  expect_failures = [var.private_endpoints]
}

run "allowed_ip_ranges_without_prefix_length" {
  command = plan

  variables {
    allowed_ip_ranges = ["203.0.113.7"]
  }

  expect_failures = [var.allowed_ip_ranges]
}

run "allowed_ip_ranges_everyone" {
  command = plan

  variables {
    allowed_ip_ranges = ["0.0.0.0/0"]
  }

  expect_failures = [var.allowed_ip_ranges]
}

run "cors_wildcard" {
  command = plan

  variables {
    cors_allowed_origins = ["*"]
  }

  expect_failures = [var.cors_allowed_origins]
}

run "cors_with_path" {
  command = plan

  variables {
    cors_allowed_origins = ["https://www.example.com/page"]
  }

  expect_failures = [var.cors_allowed_origins]
}

run "entra_sign_in" {
  command = plan

  variables {
    entra_sign_in = { client_id = "my-app" }
  }

  expect_failures = [var.entra_sign_in]
}

run "log_analytics_workspace_id" {
  command = plan

  variables {
    log_analytics_workspace_id = "Central"
  }

  expect_failures = [var.log_analytics_workspace_id]
}

run "log_retention_in_days" {
  command = plan

  variables {
    log_retention_in_days = 31
  }

  expect_failures = [var.log_retention_in_days]
}

run "daily_log_cap_in_gb" {
  command = plan

  variables {
    daily_log_cap_in_gb = 0
  }

  expect_failures = [var.daily_log_cap_in_gb]
}

run "alert_emails" {
  command = plan

  variables {
    alert_emails = ["no-address"]
  }

  expect_failures = [var.alert_emails]
}

run "alert_thresholds" {
  command = plan

  variables {
    alert_thresholds = { failed_percent = 0 }
  }

  expect_failures = [var.alert_thresholds]
}

run "monthly_budget" {
  command = plan

  variables {
    monthly_budget = 0
  }

  expect_failures = [var.monthly_budget]
}

run "second_account_without_a_name" {
  command = plan

  variables {
    open_ai_instances = [{}, {}]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_without_a_version" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "account_kind" {
  command = plan

  variables {
    open_ai_instances = [{ kind = "CognitiveServices" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "projects_on_an_openai_account" {
  command = plan

  variables {
    open_ai_instances = [{ kind = "OpenAI", project_management_enabled = true }]
  }

  expect_failures = [var.open_ai_instances]
}

run "other_maker_on_an_openai_account" {
  command = plan

  variables {
    open_ai_instances = [{ kind = "OpenAI", models = [{ name = "Mistral-Large-3", format = "Mistral AI", version = "1" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_format_empty" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", format = "" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "account_content_filter" {
  command = plan

  variables {
    open_ai_instances = [{ content_filter = "off" }]
  }

  expect_failures = [var.open_ai_instances]
}

run "account_content_filter_unknown_member" {
  command = plan

  variables {
    open_ai_instances = [{ content_filter = { filters = [] } }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_content_filter" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", content_filter = "off" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_with_two_content_filters" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", content_filter = "default", rai_policy_name = "given" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "model_custom_content_filter_without_description" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", content_filter = "custom" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "spillover_from_a_standard_deployment" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", spillover_deployment_name = "other" }, { name = "other", version = "1" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "spillover_to_an_unknown_deployment" {
  command = plan

  variables {
    open_ai_instances = [{ models = [{ name = "gpt", version = "1", sku = "ProvisionedManaged", spillover_deployment_name = "other" }] }]
  }

  expect_failures = [var.open_ai_instances]
}

run "content_filter_unknown" {
  command = plan

  variables {
    content_filter = "off"
  }

  expect_failures = [var.content_filter]
}

run "content_filter_a_list" {
  command = plan

  variables {
    content_filter = ["asynchronous"]
  }

  expect_failures = [var.content_filter]
}

run "content_filter_unknown_member" {
  command = plan

  variables {
    content_filter = { filters = [] }
  }

  expect_failures = [var.content_filter]
}

run "content_filter_mode" {
  command = plan

  variables {
    content_filter = { mode = "asynchronous" }
  }

  expect_failures = [var.content_filter]
}

run "content_filter_severity" {
  command = plan

  variables {
    content_filter = { content_filters = [{ name = "Hate", source = "Prompt", severity_threshold = "low" }] }
  }

  expect_failures = [var.content_filter]
}

run "customer_managed_key_id" {
  command = plan

  variables {
    customer_managed_key = { key_vault_key_id = "key", identity_id = "/subscriptions/x/resourceGroups/x/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x", identity_client_id = "00000000-0000-0000-0000-00000000000c" }
  }

  expect_failures = [var.customer_managed_key]
}

run "customer_managed_key_identity" {
  command = plan

  variables {
    customer_managed_key = { key_vault_key_id = "https://vault.vault.azure.net/keys/key", identity_id = "x", identity_client_id = "00000000-0000-0000-0000-00000000000c" }
  }

  expect_failures = [var.customer_managed_key]
}

run "customer_managed_key_client" {
  command = plan

  variables {
    customer_managed_key = { key_vault_key_id = "https://vault.vault.azure.net/keys/key", identity_id = "/subscriptions/x/resourceGroups/x/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x", identity_client_id = "x" }
  }

  expect_failures = [var.customer_managed_key]
}

run "one_always_ready_instance_with_zone_redundancy" {
  command = plan

  variables {
    zone_redundant         = true
    always_ready_instances = 1
  }

  expect_failures = [var.always_ready_instances]
}

run "closed_storage_without_vnet_integration" {
  command = plan

  variables {
    closed_storage = true
  }

  expect_failures = [var.closed_storage]
}

run "private_endpoints_with_a_new_virtual_network" {
  command = plan

  variables {
    vnet_integration  = {}
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints" }
  }

  expect_failures = [var.private_endpoints]
}

run "private_endpoints_without_vnet_integration" {
  command = plan

  variables {
    private_endpoints = { subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/spoke/subnets/endpoints" }
  }

  expect_failures = [var.private_endpoints]
}

run "caller_with_a_name_that_could_be_a_key" {
  command = plan

  variables {
    callers = { "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk" = { key_digests = ["0000000000000000000000000000000000000000000000000000000000000000"] } }
  }

  expect_failures = [var.callers]
}

run "caller_with_a_key_in_place_of_its_digest" {
  command = plan

  variables {
    callers = { team-a = { key_digests = ["relay_key"] } }
  }

  expect_failures = [var.callers]
}

run "caller_with_a_principal_that_is_none" {
  command = plan

  variables {
    callers       = { team-a = { principals = ["me"] } }
    entra_sign_in = { client_id = "00000000-0000-0000-0000-000000000001" }
  }

  expect_failures = [var.callers]
}

run "caller_without_a_key" {
  command = plan

  variables {
    callers = { team-a = {} }
  }

  expect_failures = [var.callers]
}

run "caller_with_a_limit_of_nothing" {
  command = plan

  variables {
    callers = { team-a = { key_digests = ["0000000000000000000000000000000000000000000000000000000000000000"], limits = { streams = 0 } } }
  }

  expect_failures = [var.callers]
}

run "caller_without_any_model" {
  command = plan

  variables {
    callers = { team-a = { key_digests = ["0000000000000000000000000000000000000000000000000000000000000000"], models = [] } }
  }

  expect_failures = [var.callers]
}

run "caller_limits" {
  command = plan

  variables {
    callers       = { team-a = { key_digests = ["0000000000000000000000000000000000000000000000000000000000000000"] } }
    caller_limits = { requests_per_minute = 0.5 }
  }

  expect_failures = [var.caller_limits]
}

run "caller_limits_without_callers" {
  command = plan

  variables {
    caller_limits = { streams = 1 }
  }

  expect_failures = [var.caller_limits]
}

run "limits_store_without_callers" {
  command = plan

  variables {
    limits_store = true
  }

  expect_failures = [var.limits_store]
}

run "token_prices" {
  command = plan

  variables {
    token_prices = { gpt = { input = -1 } }
  }

  expect_failures = [var.token_prices]
}
