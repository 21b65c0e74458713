# The Azure OpenAI accounts and model deployments of open_ai_instances.

locals {
  # The first account's name does not change when a second one is added.
  default_account_names = [
    for position in range(length(var.open_ai_instances)) : position == 0 ? local.names.openai_account : "${local.names.openai_account}-${position + 1}"
  ]

  # The order is the default priority, and the first model of the first instance is the app's default model.
  instances = [
    for position, instance in var.open_ai_instances : {
      key  = coalesce(instance.name, "openai-${position + 1}")
      name = coalesce(instance.name, local.default_account_names[position])
      # A subdomain must be globally unique, which a chosen name seldom is: hence the hash.
      subdomain = coalesce(instance.custom_subdomain_name, instance.name == null ? lower(local.default_account_names[position]) : (
        "${trim(substr(replace(lower(instance.name), "/[^a-z0-9-]/", "-"), 0, 57), "-")}-${local.name_hash}"
      ))
      region   = lower(replace(coalesce(instance.region, local.location), " ", ""))
      sku      = instance.sku
      priority = coalesce(instance.priority, position + 1)
      models   = instance.models
    }
  ]

  deployments = flatten([
    for instance in local.instances : [
      for model in instance.models : {
        instance               = instance.key
        name                   = coalesce(model.deployment_name, model.name)
        key                    = "${instance.key}/${coalesce(model.deployment_name, model.name)}"
        public_name            = coalesce(model.public_name, model.name)
        priority               = instance.priority
        wire                   = model.wire
        model                  = model.name
        version                = model.version
        sku                    = model.sku
        capacity               = model.capacity
        rai_policy_name        = model.rai_policy_name
        version_upgrade_option = model.version_upgrade_option
      }
    ]
  ])
}

resource "azurerm_cognitive_account" "openai" {
  # checkov:skip=CKV2_AZURE_22:Encrypted at rest with Microsoft's keys; a customer-managed key needs a key vault, and prompts are not stored here.
  # checkov:skip=CKV_AZURE_238:The account calls no other service, so it needs no identity.
  # checkov:skip=CKV_AZURE_134:Publicly reachable by default, with an Entra role only; vnet_integration and private_endpoints restrict access.
  # checkov:skip=CKV_AZURE_247:Outbound restriction concerns features that fetch (own data, files by URL), which an account without an identity cannot use.
  for_each = { for instance in local.instances : instance.key => instance }

  name                = each.value.name
  resource_group_name = local.resource_group_name
  location            = each.value.region
  kind                = "OpenAI"
  sku_name            = each.value.sku
  tags                = local.tags

  # Entra authentication requires a custom subdomain.
  custom_subdomain_name = each.value.subdomain
  local_auth_enabled    = false

  public_network_access_enabled = var.private_endpoints == null

  dynamic "network_acls" {
    for_each = local.uses_network ? [local.app_subnet_id] : []

    content {
      default_action = "Deny"
      bypass         = "None"

      # Access is through the subnet's service endpoint, unless there is a private endpoint.
      dynamic "virtual_network_rules" {
        for_each = var.private_endpoints == null ? [network_acls.value] : []

        content {
          subnet_id = virtual_network_rules.value
        }
      }
    }
  }
}

resource "azurerm_cognitive_deployment" "model" {
  for_each = { for deployment in local.deployments : deployment.key => deployment }

  name                 = each.value.name
  cognitive_account_id = azurerm_cognitive_account.openai[each.value.instance].id
  rai_policy_name      = each.value.rai_policy_name

  # Keeps the pinned version until Azure retires it, then upgrades instead of failing; Azure's default follows each new
  # default version.
  version_upgrade_option = each.value.version_upgrade_option

  model {
    format  = "OpenAI"
    name    = each.value.model
    version = each.value.version
  }

  sku {
    name     = each.value.sku
    capacity = each.value.capacity
  }
}
