# The Azure OpenAI (Foundry) accounts, model deployments and content filters of open_ai_instances.

locals {
  # Only the first account can do without a name, which then does not change when others are added.
  first_region         = lower(replace(coalesce(var.open_ai_instances[0].region, local.location), " ", ""))
  default_account_name = contains(keys(var.names), "openai_account") ? local.names.openai_account : "${local.names.openai_account}${local.region_suffixes[local.first_region]}"

  # The order is the default priority, and the first model of the first instance is the app's default model.
  instances = [
    for position, instance in var.open_ai_instances : {
      key  = coalesce(instance.name, "openai-${position + 1}")
      name = coalesce(instance.name, local.default_account_name)
      # A subdomain must be globally unique, which a chosen name seldom is: hence the hash.
      subdomain = coalesce(instance.custom_subdomain_name, instance.name == null ? lower(local.default_account_name) : (
        "${trim(substr(replace(lower(instance.name), "/[^a-z0-9-]/", "-"), 0, 57), "-")}-${local.name_hash}"
      ))
      region   = lower(replace(coalesce(instance.region, local.location), " ", ""))
      kind     = instance.kind
      sku      = instance.sku
      projects = instance.project_management_enabled
      # A name, or "custom" for an account that describes its own.
      content_filter = instance.content_filter == null ? local.default_content_filter : try(tostring(instance.content_filter), "custom")
      priority       = coalesce(instance.priority, position + 1)
      models         = instance.models
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
        format                 = model.format
        version                = model.version
        sku                    = model.sku
        capacity               = model.capacity
        content_filter         = model.rai_policy_name == null ? coalesce(model.content_filter, instance.content_filter) : null
        rai_policy_name        = model.rai_policy_name
        spillover              = model.spillover_deployment_name
        version_upgrade_option = model.version_upgrade_option
      }
    ]
  ])

  # An account answers at this address whatever its kind. The one that Azure reports changes when Azure upgrades an
  # account from OpenAI to AIServices, and would change the app's settings with it; only the cloud's suffix is taken
  # from there (azure.com, azure.us, azure.cn).
  endpoints = {
    for instance in local.instances : instance.key => try(
      "https://${instance.subdomain}.openai.${regex("azure\\.[a-z]+", azurerm_cognitive_account.openai[instance.key].endpoint)}/",
      azurerm_cognitive_account.openai[instance.key].endpoint,
    )
  }

  # ---- Content filters ----

  # Azure's own default. Named, since a deployment keeps its filter when the argument is removed.
  azure_content_filter   = "Microsoft.DefaultV2"
  default_content_filter = try(tostring(var.content_filter), "custom")

  # The filters of Azure's default policy, which "asynchronous" keeps: only the moment at which they act changes.
  standard_content_filters = concat(
    [for pair in setproduct(["Hate", "Sexual", "Selfharm", "Violence"], ["Prompt", "Completion"]) : {
      name = pair[0], source = pair[1], severity_threshold = "Medium", block_enabled = true, filter_enabled = true
    }],
    [
      { name = "Jailbreak", source = "Prompt", severity_threshold = null, block_enabled = true, filter_enabled = true },
      { name = "Protected Material Text", source = "Completion", severity_threshold = null, block_enabled = true, filter_enabled = true },
      { name = "Protected Material Code", source = "Completion", severity_threshold = null, block_enabled = false, filter_enabled = true },
    ],
  )

  # What describes the filter "custom" of each account: the account, or else the variable content_filter. A position in a
  # tuple, since the two may have different members.
  custom_content_filters = {
    for position, instance in var.open_ai_instances : local.instances[position].key => [var.content_filter, instance.content_filter][
      can(keys(instance.content_filter)) ? 1 : 0
    ]
  }

  # One policy for each account and filter that a model of the account uses.
  content_filter_policies = {
    for policy in distinct([
      for deployment in local.deployments : { instance = deployment.instance, filter = deployment.content_filter }
      if contains(["asynchronous", "custom"], coalesce(deployment.content_filter, "none"))
      ]) : "${policy.instance}/${policy.filter}" => {
      instance = policy.instance
      filter   = policy.filter
      base     = policy.filter == "custom" ? try(coalesce(local.custom_content_filters[policy.instance].base_policy_name), local.azure_content_filter) : local.azure_content_filter
      mode     = policy.filter == "custom" ? try(coalesce(local.custom_content_filters[policy.instance].mode), "Asynchronous_filter") : "Asynchronous_filter"
      filters = [for filter in [
        local.standard_content_filters, try(local.custom_content_filters[policy.instance].content_filters, local.standard_content_filters)
        ][policy.filter == "custom" ? 1 : 0] : {
        name               = filter.name
        source             = filter.source
        severity_threshold = try(filter.severity_threshold, null)
        block_enabled      = try(coalesce(filter.block_enabled), true)
        filter_enabled     = try(coalesce(filter.filter_enabled), true)
      }]
    }
  }
}

resource "azurerm_cognitive_account" "openai" {
  # checkov:skip=CKV2_AZURE_22:customer_managed_key adds one; by default encrypted at rest with Microsoft's keys, and prompts are not stored here.
  # checkov:skip=CKV_AZURE_134:Publicly reachable by default, with an Entra role only; vnet_integration and private_endpoints restrict access.
  # checkov:skip=CKV_AZURE_247:Outbound restriction concerns features that fetch (own data, files by URL), and the account's identity has no role to fetch with.
  for_each = { for instance in local.instances : instance.key => instance }

  name                = each.value.name
  resource_group_name = local.resource_group_name
  location            = each.value.region
  kind                = each.value.kind
  sku_name            = each.value.sku
  tags                = local.tags

  # Entra authentication requires a custom subdomain.
  custom_subdomain_name = each.value.subdomain
  local_auth_enabled    = false

  public_network_access_enabled = var.private_endpoints == null
  project_management_enabled    = each.value.projects

  # Always there, and without a role: Azure adds one when it upgrades an account, and projects require one.
  identity {
    type         = var.customer_managed_key == null ? "SystemAssigned" : "SystemAssigned, UserAssigned"
    identity_ids = var.customer_managed_key == null ? null : [var.customer_managed_key.identity_id]
  }

  # Always written, since without the block the provider leaves the account's rules as they are.
  network_acls {
    default_action = local.uses_network ? "Deny" : "Allow"
    bypass         = "None"

    # Access is through the subnet's service endpoint, unless there is a private endpoint.
    dynamic "virtual_network_rules" {
      for_each = local.uses_network && var.private_endpoints == null ? [local.app_subnet_id] : []

      content {
        subnet_id = virtual_network_rules.value
      }
    }
  }

  lifecycle {
    # Azure upgrades accounts from OpenAI to AIServices by itself, and enables projects then. Without this, each apply
    # would ask Azure to roll that back, or replace the account. The key belongs to the resource below.
    ignore_changes = [kind, project_management_enabled, customer_managed_key]
  }
}

# Not in the account's own block, whose removal the provider does not apply.
resource "azurerm_cognitive_account_customer_managed_key" "openai" {
  for_each = var.customer_managed_key == null ? {} : { for instance in local.instances : instance.key => instance }

  cognitive_account_id = azurerm_cognitive_account.openai[each.key].id
  key_vault_key_id     = var.customer_managed_key.key_vault_key_id
  identity_client_id   = var.customer_managed_key.identity_client_id
}

resource "azurerm_cognitive_account_rai_policy" "model" {
  for_each = local.content_filter_policies

  # Another base makes another policy, which is created before this one is destroyed and so needs another name.
  name                 = "${var.project}-${each.value.filter}${each.value.base == local.azure_content_filter ? "" : "-${replace(each.value.base, ".", "-")}"}"
  cognitive_account_id = azurerm_cognitive_account.openai[each.value.instance].id
  base_policy_name     = each.value.base
  mode                 = each.value.mode
  tags                 = local.tags

  dynamic "content_filter" {
    for_each = each.value.filters

    content {
      name               = content_filter.value.name
      source             = content_filter.value.source
      severity_threshold = content_filter.value.severity_threshold
      block_enabled      = content_filter.value.block_enabled
      filter_enabled     = content_filter.value.filter_enabled
    }
  }

  lifecycle {
    # The deployments must use another policy before theirs is destroyed.
    create_before_destroy = true
  }
}

resource "azurerm_cognitive_deployment" "model" {
  for_each = { for deployment in local.deployments : deployment.key => deployment }

  name                 = each.value.name
  cognitive_account_id = azurerm_cognitive_account.openai[each.value.instance].id
  rai_policy_name = each.value.rai_policy_name != null ? each.value.rai_policy_name : (
    each.value.content_filter == "default" ? local.azure_content_filter : azurerm_cognitive_account_rai_policy.model["${each.value.instance}/${each.value.content_filter}"].name
  )

  # Keeps the pinned version until Azure retires it, then upgrades instead of failing; Azure's default follows each new
  # default version.
  version_upgrade_option = each.value.version_upgrade_option

  model {
    format  = each.value.format
    name    = each.value.model
    version = each.value.version
  }

  sku {
    name     = each.value.sku
    capacity = each.value.capacity
  }

  lifecycle {
    precondition {
      condition     = each.value.spillover == null || fileexists("${path.module}/spillover_override.tf")
      error_message = "${each.key}: spillover_deployment_name needs azurerm 5.10 or newer and the file spillover_override.tf: cp spillover_override.tf.example spillover_override.tf, then terraform init -upgrade."
    }
  }
}
