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
  instance_memory_in_mb       = 2048
  maximum_instance_count      = 40
  http_concurrency            = 100
  always_ready_instances      = 0
  relay_settings              = {}
  deploy_code                 = false
  check_health                = true
  python                      = "python3"
  vnet_integration            = null
  private_endpoints           = null
  allowed_ip_ranges           = []
  cors_allowed_origins        = []
  entra_sign_in               = null
  log_analytics_workspace_id  = null
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
      { name = "two", region = "Sweden Central", models = [{ name = "gpt-5.4-mini" }] },
      {
        name     = "one"
        priority = 7
        models = [
          { name = "gpt-5.4-mini" },
          {
            name                   = "gpt-5.4-nano"
            deployment_name        = "small"
            public_name            = "nano"
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
    condition     = jsondecode(local.app_settings["AZURE_OPENAI_BACKENDS"]) == [{ name = "two/gpt-5.4-mini", endpoint = "https://two.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 1 }, { name = "one/gpt-5.4-mini", endpoint = "https://one.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 7 }, { name = "one/small", endpoint = "https://one.openai.azure.com/", deployment = "small", model = "nano", priority = 7 }]
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
    open_ai_instances = [{ name = "My.OpenAI_1" }, {}]
  }

  assert {
    condition     = keys(azurerm_cognitive_account.openai) == ["My.OpenAI_1", "openai-2"]
    error_message = "An account without a name does not get the default key."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["My.OpenAI_1"].custom_subdomain_name == "my-openai-1-${local.name_hash}"
    error_message = "The subdomain derived from a name is invalid, or lacks the hash."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-2"].name == "oai-relay-dev-${local.name_hash}-2" && azurerm_cognitive_account.openai["openai-2"].custom_subdomain_name == azurerm_cognitive_account.openai["openai-2"].name
    error_message = "An account's default name or subdomain is wrong."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-2/gpt-5.4-mini"].model[0].version == "2026-03-17"
    error_message = "An account without models does not get the default model."
  }
}

run "second_account_does_not_change_the_first" {
  command = plan

  variables {
    open_ai_instances = [{}, {}]
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].name == "oai-relay-dev-${local.name_hash}" && azurerm_cognitive_account.openai["openai-2"].name == "oai-relay-dev-${local.name_hash}-2"
    error_message = "The first account would be renamed, and so replaced."
  }
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
