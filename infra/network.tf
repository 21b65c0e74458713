# Virtual network integration: the app's subnet and the private endpoints. None is created by default.

check "private_dns_zones" {
  assert {
    condition = alltrue([
      for zones in [try(var.private_endpoints.openai_dns_zone_ids, [])] :
      length(zones) == 0 || length(setsubtract(local.account_dns_zones, [for id in zones : reverse(split("/", id))[0]])) == 0
    ])
    error_message = "private_endpoints.openai_dns_zone_ids lacks one of ${join(", ", local.account_dns_zones)}. The app uses the first; programs that use an account's other addresses would reach its public, closed endpoint."
  }
}

locals {
  # An account answers under three names, of which a private endpoint makes one record each.
  account_dns_zones = ["privatelink.openai.azure.com", "privatelink.cognitiveservices.azure.com", "privatelink.services.ai.azure.com"]

  uses_network    = var.vnet_integration != null
  creates_network = local.uses_network && try(var.vnet_integration.subnet_id, null) == null
  app_is_private  = try(var.private_endpoints.function_app, false)

  storage_has_private_endpoint = var.closed_storage && var.private_endpoints != null

  virtual_network_name = contains(keys(var.names), "virtual_network") ? local.names.virtual_network : "${local.names.virtual_network}${local.region_suffixes[local.location]}"

  app_subnet_id = local.uses_network ? (local.creates_network ? azurerm_subnet.app[0].id : var.vnet_integration.subnet_id) : null
}

resource "azurerm_virtual_network" "main" {
  # checkov:skip=CKV_AZURE_183:Azure's default DNS servers suffice for a network with one app.
  count = local.creates_network ? 1 : 0

  name                = coalesce(var.vnet_integration.virtual_network_name, local.virtual_network_name)
  resource_group_name = local.resource_group_name
  location            = local.location
  address_space       = [var.vnet_integration.address_space]
  tags                = local.tags
}

# Without custom rules: the default rules deny traffic from the internet and allow the app's outbound traffic.
resource "azurerm_network_security_group" "app" {
  count = local.creates_network ? 1 : 0

  name                = local.names.network_security_group
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags
}

resource "azurerm_subnet" "app" {
  count = local.creates_network ? 1 : 0

  name                 = local.names.subnet
  resource_group_name  = local.resource_group_name
  virtual_network_name = azurerm_virtual_network.main[0].name
  # Flex Consumption requires at least a /27.
  address_prefixes = [cidrsubnet(var.vnet_integration.address_space, 27 - tonumber(split("/", var.vnet_integration.address_space)[1]), 0)]

  # Required by the network rules of the accounts and of the storage, which allow this subnet: without it they do not
  # recognize its traffic.
  service_endpoint {
    service = "Microsoft.CognitiveServices"
  }

  dynamic "service_endpoint" {
    for_each = var.closed_storage ? ["Microsoft.Storage"] : []

    content {
      service = service_endpoint.value
    }
  }

  delegation {
    name = "flex-consumption"

    service_delegation {
      name    = "Microsoft.App/environments"
      actions = ["Microsoft.Network/virtualNetworks/subnets/join/action"]
    }
  }

  lifecycle {
    # The app must have left a subnet before it is destroyed (InUseSubnetCannotBeDeleted). Terraform applies this order
    # to the virtual network and the resource group as well: a network in another region needs another name.
    create_before_destroy = true
    # A network that is replaced under the same name takes the subnet along.
    replace_triggered_by = [azurerm_virtual_network.main[0].location]
  }
}

resource "azurerm_subnet_network_security_group_association" "app" {
  count = local.creates_network ? 1 : 0

  subnet_id                 = azurerm_subnet.app[0].id
  network_security_group_id = azurerm_network_security_group.app[0].id
}

resource "azurerm_private_endpoint" "openai" {
  for_each = var.private_endpoints == null ? {} : { for instance in local.instances : instance.key => instance }

  name                = trim(substr("${local.names.private_endpoint}-${each.key}", 0, 80), "-.")
  resource_group_name = local.resource_group_name
  location            = local.location
  subnet_id           = var.private_endpoints.subnet_id
  tags                = local.tags

  private_service_connection {
    name                           = "openai"
    private_connection_resource_id = azurerm_cognitive_account.openai[each.key].id
    subresource_names              = ["account"]
    is_manual_connection           = false
  }

  dynamic "private_dns_zone_group" {
    for_each = length(var.private_endpoints.openai_dns_zone_ids) > 0 ? [var.private_endpoints.openai_dns_zone_ids] : []

    content {
      name                 = "default"
      private_dns_zone_ids = private_dns_zone_group.value
    }
  }

  # While a deployment is being created, its account is busy and rejects the endpoint.
  depends_on = [azurerm_cognitive_deployment.model]

  lifecycle {
    # In many landing zones Azure Policy adds the zone group.
    ignore_changes = [private_dns_zone_group]
  }
}

resource "azurerm_private_endpoint" "app" {
  count = local.app_is_private ? 1 : 0

  name                = "${local.names.private_endpoint}-app"
  resource_group_name = local.resource_group_name
  location            = local.location
  subnet_id           = var.private_endpoints.subnet_id
  tags                = local.tags

  private_service_connection {
    name                           = "app"
    private_connection_resource_id = azurerm_function_app_flex_consumption.app.id
    subresource_names              = ["sites"]
    is_manual_connection           = false
  }

  dynamic "private_dns_zone_group" {
    for_each = length(var.private_endpoints.function_app_dns_zone_ids) > 0 ? [var.private_endpoints.function_app_dns_zone_ids] : []

    content {
      name                 = "default"
      private_dns_zone_ids = private_dns_zone_group.value
    }
  }

  lifecycle {
    ignore_changes = [private_dns_zone_group]
  }
}

# With closed_storage: the host's own state and the code package are reached through this endpoint only.
resource "azurerm_private_endpoint" "storage" {
  count = local.storage_has_private_endpoint ? 1 : 0

  name                = "${local.names.private_endpoint}-storage"
  resource_group_name = local.resource_group_name
  location            = local.location
  subnet_id           = var.private_endpoints.subnet_id
  tags                = local.tags

  private_service_connection {
    name                           = "blob"
    private_connection_resource_id = azurerm_storage_account.app.id
    subresource_names              = ["blob"]
    is_manual_connection           = false
  }

  dynamic "private_dns_zone_group" {
    for_each = length(var.private_endpoints.storage_dns_zone_ids) > 0 ? [var.private_endpoints.storage_dns_zone_ids] : []

    content {
      name                 = "default"
      private_dns_zone_ids = private_dns_zone_group.value
    }
  }

  lifecycle {
    ignore_changes = [private_dns_zone_group]
  }
}
