# open_ai_instances: several accounts, the article's own form, and every fall-back.

mock_provider "azurerm" {
  source          = "./tests/mocks"
  override_during = plan
}

# A terraform.tfvars of one's own is loaded by `terraform test` too: every input is pinned here.
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
}

run "the_articles_own_form" {
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
    error_message = "The group is not the named one."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["dev-openai-one"].name == "dev-openai-one" && azurerm_cognitive_account.openai["dev-openai-one"].custom_subdomain_name == "ai-service-dev-openai-1" && azurerm_cognitive_account.openai["dev-openai-one"].location == "uksouth"
    error_message = "The account is not as the file says."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["dev-openai-one/gpt-5.4-mini"].name == "gpt-5.4-mini" && azurerm_cognitive_deployment.model["dev-openai-one/gpt-5.4-mini"].sku[0].name == "GlobalStandard" && azurerm_cognitive_deployment.model["dev-openai-one/gpt-5.4-mini"].sku[0].capacity == 50
    error_message = "Name and version alone do not make a usable deployment."
  }
}

run "one_model_on_two_accounts" {
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
    error_message = "Two accounts with one model collide."
  }

  assert {
    condition     = jsondecode(local.app_settings["AZURE_OPENAI_BACKENDS"]) == [{ name = "two/gpt-5.4-mini", endpoint = "https://two.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 1 }, { name = "one/gpt-5.4-mini", endpoint = "https://one.openai.azure.com/", deployment = "gpt-5.4-mini", model = "gpt-5.4-mini", priority = 7 }, { name = "one/small", endpoint = "https://one.openai.azure.com/", deployment = "small", model = "nano", priority = 7 }]
    error_message = "The app is told of other deployments, or in another order, than the list has."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["two/gpt-5.4-mini"].cognitive_account_id == azurerm_cognitive_account.openai["two"].id && azurerm_cognitive_deployment.model["one/small"].cognitive_account_id == azurerm_cognitive_account.openai["one"].id
    error_message = "A deployment is on the wrong account."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["one/small"].sku[0].name == "DataZoneStandard" && azurerm_cognitive_deployment.model["one/small"].sku[0].capacity == 7 && azurerm_cognitive_deployment.model["one/small"].rai_policy_name == "async" && azurerm_cognitive_deployment.model["one/small"].version_upgrade_option == "NoAutoUpgrade" && azurerm_cognitive_deployment.model["one/small"].model[0].name == "gpt-5.4-nano"
    error_message = "What a model says of itself is lost."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["two"].location == "swedencentral" && azurerm_cognitive_account.openai["one"].location == "eastus2"
    error_message = "The region, or its fall-back, is lost."
  }

  assert {
    condition     = keys(azurerm_role_assignment.openai) == ["one", "two"]
    error_message = "The app may not ask every account."
  }
}

run "fall_backs_of_name_and_address" {
  command = plan

  variables {
    open_ai_instances = [{ name = "My.OpenAI_1" }, {}]
  }

  assert {
    condition     = keys(azurerm_cognitive_account.openai) == ["My.OpenAI_1", "openai-2"]
    error_message = "An account without a name has no place."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["My.OpenAI_1"].custom_subdomain_name == "my-openai-1-${local.name_hash}"
    error_message = "The address made of a name is not unique, or not an address."
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-2"].name == "oai-relay-dev-${local.name_hash}-2" && azurerm_cognitive_account.openai["openai-2"].custom_subdomain_name == azurerm_cognitive_account.openai["openai-2"].name
    error_message = "The name by the pattern is lost."
  }

  assert {
    condition     = azurerm_cognitive_deployment.model["openai-2/gpt-5.4-mini"].model[0].version == "2026-03-17"
    error_message = "An account without models gets no default model."
  }
}

run "a_second_account_leaves_the_first_alone" {
  command = plan

  variables {
    open_ai_instances = [{}, {}]
  }

  assert {
    condition     = azurerm_cognitive_account.openai["openai-1"].name == "oai-relay-dev-${local.name_hash}" && azurerm_cognitive_account.openai["openai-2"].name == "oai-relay-dev-${local.name_hash}-2"
    error_message = "The first account is renamed, which replaces it."
  }
}

run "relay_settings_reach_the_app" {
  command = plan

  variables {
    relay_settings = { MAX_OUTPUT_TOKENS = "4096", PING_INTERVAL_SECONDS = "7.5" }
  }

  assert {
    condition     = local.app_settings["MAX_OUTPUT_TOKENS"] == "4096" && local.app_settings["PING_INTERVAL_SECONDS"] == "7.5"
    error_message = "A setting is lost."
  }
}
