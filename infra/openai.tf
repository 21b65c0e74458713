# The Azure OpenAI accounts and their model deployments, as open_ai_instances lists them.

locals {
  # The first keeps its name when a second one joins it.
  default_account_names = [
    for position in range(length(var.open_ai_instances)) : position == 0 ? local.names.openai_account : "${local.names.openai_account}-${position + 1}"
  ]

  # The order is the priority, and the first model of the first instance is the app's default.
  instances = [
    for position, instance in var.open_ai_instances : {
      key  = coalesce(instance.name, "openai-${position + 1}")
      name = coalesce(instance.name, local.default_account_names[position])
      # An address must be unique in the world, which a name that a person chose seldom is: hence the hash.
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
  # checkov:skip=CKV2_AZURE_22:Microsoft's keys encrypt at rest; a customer's key costs a vault, and prompts are not stored here.
  # checkov:skip=CKV_AZURE_238:The account calls no other service, so it needs no identity of its own.
  # checkov:skip=CKV_AZURE_134:Open to the app from anywhere by default, by Entra role only; vnet_integration and private_endpoints close it.
  # checkov:skip=CKV_AZURE_247:Outbound restriction concerns features that fetch (own data, files by URL), which an account without an identity can't use.
  for_each = { for instance in local.instances : instance.key => instance }

  name                = each.value.name
  resource_group_name = local.resource_group_name
  location            = each.value.region
  kind                = "OpenAI"
  sku_name            = each.value.sku
  tags                = local.tags

  # Entra sign-in works only under an address of the account's own.
  custom_subdomain_name = each.value.subdomain
  local_auth_enabled    = false

  public_network_access_enabled = var.private_endpoints == null

  dynamic "network_acls" {
    for_each = local.uses_network ? [local.app_subnet_id] : []

    content {
      default_action = "Deny"
      bypass         = "None"

      # The subnet's service endpoint is the way in, unless a private endpoint is.
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

  # A pinned version stays until Azure retires it, and is then replaced instead of failing; Azure's default drifts.
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
