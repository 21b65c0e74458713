# open_ai_instances: several accounts, explicit attributes, and all defaults.

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

run "explicit_account" {
  command = plan

  variables {
    location            = "uksouth"
    resource_group_name = "azure-open-ai-test-rg"

    open_ai_instances = [
      {
        name                  = "dev-openai-one"
        region                = "uksouth"
        sku                   = "S0"
        custom_subdomain_name = "ai-service-dev-openai-1"
        models = [
          { name = "gpt-5.4-mini", version = "2026-03-17" },
        ]
      },
    ]
  }

  assert {
    condition     = azurerm_resource_group.main[0].name == "azure-open-ai-test-rg" && azurerm_resource_group.main[0].location == "uksouth"
    error_message = "The resource group's name or region is wrong."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["dev-openai-one"].name == "dev-openai-one" && azurerm_cognitive_account.openai["dev-openai-one"].custom_subdomain_name == "ai-service-dev-openai-1" && azurerm_cognitive_account.openai["dev-openai-one"].location == "uksouth"
    error_message = "The account's name, subdomain or region is wrong."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["dev-openai-one/gpt-5.4-mini"].name == "gpt-5.4-mini" && azurerm_cognitive_deployment.model["dev-openai-one/gpt-5.4-mini"].sku[0].name == "GlobalStandard" && azurerm_cognitive_deployment.model["dev-openai-one/gpt-5.4-mini"].sku[0].capacity == 50
    error_message = "A model with only name and version does not get the default sku and capacity."
  }
}

run "same_model_on_two_accounts" {
  command = plan

  override_resource {
    target          = azurerm_cognitive_account.openai["one"]
    override_during = plan
    values = {
      id       = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.CognitiveServices/accounts/one"
      endpoint = "https://one.openai.azure.com/"
    }
  }

  override_resource {
    target          = azurerm_cognitive_account.openai["two"]
    override_during = plan
    values = {
      id       = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.CognitiveServices/accounts/two"
      endpoint = "https://two.openai.azure.com/"
    }
  }

  variables {
    open_ai_instances = [
      { name = "two", region = "Sweden Central", custom_subdomain_name = "two", models = [{ name = "gpt-5.4-mini", version = "2026-03-17" }] },
      {
        name                  = "one"
        custom_subdomain_name = "one"
        priority              = 7
        models = [
          { name = "gpt-5.4-mini", version = "2026-03-17" },
          {
            name                   = "gpt-5.4-nano"
            version                = "2026-03-17"
            deployment_name        = "small"
            public_name            = "nano"
            wire                   = "responses"
            sku                    = "DataZoneStandard"
            capacity               = 7
            rai_policy_name        = "async"
            version_upgrade_option = "NoAutoUpgrade"
          },
        ]
      },
    ]
  }

  assert {
    condition     = keys(azurerm_cognitive_deployment.model) == ["one/gpt-5.4-mini", "one/small", "two/gpt-5.4-mini"]
    error_message = "The same model on two accounts does not give two deployments."
  }

  assert {
    condition     = jsondecode(local.app_settings["AZURE_OPENAI_BACKENDS"]) == [{ name = "two/gpt-5.4-mini", endpoint = "https://two.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 1, wire = "chat" }, { name = "one/gpt-5.4-mini", endpoint = "https://one.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 7, wire = "chat" }, { name = "one/small", endpoint = "https://one.openai.azure.com/", deployment = "small", model = "nano", priority = 7, wire = "responses" }]
    error_message = "AZURE_OPENAI_BACKENDS has other deployments, or another order, than open_ai_instances."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["two/gpt-5.4-mini"].cognitive_account_id == azurerm_cognitive_account.openai["two"].id && azurerm_cognitive_deployment.model["one/small"].cognitive_account_id == azurerm_cognitive_account.openai["one"].id
    error_message = "A deployment is on the wrong account."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["one/small"].sku[0].name == "DataZoneStandard" && azurerm_cognitive_deployment.model["one/small"].sku[0].capacity == 7 && azurerm_cognitive_deployment.model["one/small"].rai_policy_name == "async" && azurerm_cognitive_deployment.model["one/small"].version_upgrade_option == "NoAutoUpgrade" && azurerm_cognitive_deployment.model["one/small"].model[0].name == "gpt-5.4-nano"
    error_message = "An attribute of the model is not applied to its deployment."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["two"].location == "swedencentral" && azurerm_cognitive_account.openai["one"].location == "eastus2"
    error_message = "A region, or its default, is wrong."
  }

  assert {
    condition     = keys(azurerm_role_assignment.openai) == ["one", "two"]
    error_message = "The app lacks the role on an account."
  }
}

run "default_name_and_subdomain" {
  command = plan

  variables {
    open_ai_instances = [{ region = "Sweden Central" }, { name = "My.OpenAI_1" }]
  }

  assert {
    condition     = keys(azurerm_cognitive_account.openai) == ["My.OpenAI_1", "openai-1"]
    error_message = "An account without a name does not get the default key."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["My.OpenAI_1"].custom_subdomain_name == "my-openai-1-${local.name_hash}"
    error_message = "The subdomain derived from a name is invalid, or lacks the hash."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].name == "oai-relay-dev-${local.name_hash}-swedencentral" && azurerm_cognitive_account.openai["openai-1"].custom_subdomain_name == azurerm_cognitive_account.openai["openai-1"].name
    error_message = "An account's default name or subdomain is wrong, or lacks the region: an account in another region could not be created before this one is destroyed."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].model[0].version == "2026-03-17"
    error_message = "An account without models does not get the default model."
  }
}

run "second_account_does_not_change_the_first" {
  command = plan

  variables {
    open_ai_instances = [{}, { name = "second" }]
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].name == "oai-relay-dev-${local.name_hash}" && azurerm_cognitive_account.openai["second"].name == "second"
    error_message = "The first account would be renamed, and so replaced."
  }
}

run "chat_settings" {
  command = plan

  variables {
    chat_settings = { CHAT_NAME = "Contoso Chat" }
  }

  assert {
    condition     = local.app_settings["CHAT_NAME"] == "Contoso Chat"
    error_message = "A setting in chat_settings is not applied."
  }
}

run "account_name_of_names" {
  command = plan

  variables {
    names = { openai_account = "given" }
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].name == "given"
    error_message = "The name in names is not used as it is."
  }
}

run "kinds_and_makers" {
  command = plan

  variables {
    open_ai_instances = [
      { name = "foundry", project_management_enabled = true, models = [{ name = "Mistral-Large-3", format = "Mistral AI", version = "1" }] },
      { name = "classic", kind = "OpenAI", models = [{ name = "gpt-5.4-mini", version = "2026-03-17" }] },
    ]
  }

  assert {
    condition     = azurerm_cognitive_account.openai["foundry"].kind == "AIServices" && azurerm_cognitive_account.openai["foundry"].project_management_enabled && azurerm_cognitive_account.openai["classic"].kind == "OpenAI" && !azurerm_cognitive_account.openai["classic"].project_management_enabled
    error_message = "An account has another kind than chosen, or projects that were not asked for."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["foundry/Mistral-Large-3"].model[0].format == "Mistral AI" && azurerm_cognitive_deployment.model["classic/gpt-5.4-mini"].model[0].format == "OpenAI"
    error_message = "The maker of a model is wrong."
  }
}

run "address_of_an_upgraded_account" {
  command = plan

  override_resource {
    target          = azurerm_cognitive_account.openai["openai-1"]
    override_during = plan
    values = {
      id       = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.CognitiveServices/accounts/one"
      endpoint = "https://one.cognitiveservices.azure.us/"
    }
  }

  variables {
    open_ai_instances = [{ custom_subdomain_name = "one" }]
  }

  assert {
    condition     = jsondecode(local.app_settings["AZURE_OPENAI_BACKENDS"])[0].endpoint == "https://one.openai.azure.us/"
    error_message = "The app's settings change when Azure upgrades an account and reports another address, or ignore the cloud."
  }
}

run "asynchronous_content_filter" {
  command = plan

  variables {
    content_filter = "asynchronous"
    open_ai_instances = [{ name = "one", models = [
      { name = "gpt-5.4-mini", version = "2026-03-17" },
      { name = "gpt-5.4-nano", version = "2026-03-17", content_filter = "default" },
      { name = "gpt-5.4", version = "2026-03-05", rai_policy_name = "given" },
    ] }]
  }

  assert {
    condition     = keys(azurerm_cognitive_account_rai_policy.model) == ["one/asynchronous"] && azurerm_cognitive_account_rai_policy.model["one/asynchronous"].mode == "Asynchronous_filter" && azurerm_cognitive_account_rai_policy.model["one/asynchronous"].base_policy_name == "Microsoft.DefaultV2" && azurerm_cognitive_account_rai_policy.model["one/asynchronous"].cognitive_account_id == azurerm_cognitive_account.openai["one"].id
    error_message = "The policy is not created on the account, or does not filter beside the stream."
  }

  assert {
    condition     = length([for filter in azurerm_cognitive_account_rai_policy.model["one/asynchronous"].content_filter : filter if filter.filter_enabled && filter.severity_threshold == "Medium"]) == 8 && alltrue([for filter in azurerm_cognitive_account_rai_policy.model["one/asynchronous"].content_filter : (filter.severity_threshold == null) == contains(["Jailbreak", "Protected Material Text", "Protected Material Code"], filter.name)])
    error_message = "The policy's filters are not those of Azure's default policy."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["one/gpt-5.4-mini"].rai_policy_name == "relay-asynchronous" && azurerm_cognitive_deployment.model["one/gpt-5.4-nano"].rai_policy_name == "Microsoft.DefaultV2" && azurerm_cognitive_deployment.model["one/gpt-5.4"].rai_policy_name == "given"
    error_message = "A deployment has another content filter than chosen."
  }
}

run "custom_content_filter" {
  command = plan

  variables {
    content_filter = { mode = "Blocking", content_filters = [{ name = "Hate", source = "Prompt", severity_threshold = "Low" }, { name = "Jailbreak", source = "Prompt", block_enabled = false }] }
  }

  assert {
    condition     = azurerm_cognitive_account_rai_policy.model["openai-1/custom"].mode == "Blocking" && jsonencode([for filter in azurerm_cognitive_account_rai_policy.model["openai-1/custom"].content_filter : [filter.name, filter.source, filter.severity_threshold, filter.block_enabled]]) == jsonencode([["Hate", "Prompt", "Low", true], ["Jailbreak", "Prompt", null, false]])
    error_message = "The policy differs from content_filter."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].rai_policy_name == "relay-custom"
    error_message = "The deployment does not use the policy."
  }
}

run "content_filter_of_an_account" {
  command = plan

  variables {
    content_filter = "asynchronous"
    open_ai_instances = [
      { name = "one", content_filter = "default", models = [{ name = "gpt-5.4-mini", version = "2026-03-17" }, { name = "gpt-5.4-nano", version = "2026-03-17", content_filter = "asynchronous" }] },
      { name = "two", models = [{ name = "gpt-5.4-mini", version = "2026-03-17" }] },
    ]
  }

  assert {
    condition     = { for key, deployment in azurerm_cognitive_deployment.model : key => deployment.rai_policy_name } == { "one/gpt-5.4-mini" = "Microsoft.DefaultV2", "one/gpt-5.4-nano" = "relay-asynchronous", "two/gpt-5.4-mini" = "relay-asynchronous" }
    error_message = "A model, or else its account, does not decide about the content filter."
  }
}

run "custom_content_filter_of_an_account" {
  command = plan

  variables {
    open_ai_instances = [{ content_filter = { base_policy_name = "Microsoft.Default", content_filters = [{ name = "Violence", source = "Completion", severity_threshold = "High" }] } }]
  }

  assert {
    condition     = azurerm_cognitive_account_rai_policy.model["openai-1/custom"].mode == "Asynchronous_filter" && azurerm_cognitive_account_rai_policy.model["openai-1/custom"].content_filter[0].severity_threshold == "High" && azurerm_cognitive_deployment.model["openai-1/gpt-5.4-mini"].rai_policy_name == "relay-custom-Microsoft-Default"
    error_message = "The policy differs from the account's content_filter."
  }
}

run "customer_managed_key" {
  command = plan

  variables {
    customer_managed_key = { key_vault_key_id = "https://vault.vault.azure.net/keys/key", identity_id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/hub/providers/Microsoft.ManagedIdentity/userAssignedIdentities/keys", identity_client_id = "00000000-0000-0000-0000-00000000000c" }
  }

  assert {
    condition     = keys(azurerm_cognitive_account_customer_managed_key.openai) == keys(azurerm_cognitive_account.openai) && azurerm_cognitive_account_customer_managed_key.openai["openai-1"].key_vault_key_id == "https://vault.vault.azure.net/keys/key" && azurerm_cognitive_account_customer_managed_key.openai["openai-1"].identity_client_id == "00000000-0000-0000-0000-00000000000c"
    error_message = "An account is not encrypted with the key."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].identity[0].type == "SystemAssigned, UserAssigned" && length(azurerm_cognitive_account.openai["openai-1"].identity[0].identity_ids) == 1
    error_message = "An account lacks the identity that may use the key."
  }
}

run "spillover_without_its_override_file" {
  command = plan

  variables {
    open_ai_instances = [{ models = [
      { name = "gpt-5.4-mini", version = "2026-03-17", sku = "GlobalProvisionedManaged", spillover_deployment_name = "standard" },
      { name = "gpt-5.4-mini", version = "2026-03-17", deployment_name = "standard" },
    ] }]
  }

  expect_failures = [azurerm_cognitive_deployment.model]
}

run "relay_settings" {
  command = plan

  variables {
    relay_settings = { MAX_OUTPUT_TOKENS = "4096", PING_INTERVAL_SECONDS = "7.5" }
  }

  assert {
    condition     = local.app_settings["MAX_OUTPUT_TOKENS"] == "4096" && local.app_settings["PING_INTERVAL_SECONDS"] == "7.5"
    error_message = "A setting in relay_settings is not applied."
  }
}
