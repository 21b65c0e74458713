# The resource group: a new or an existing one.

resource "azurerm_resource_group" "main" {
  count = var.create_resource_group ? 1 : 0

  name     = coalesce(var.resource_group_name, local.names.resource_group)
  location = local.location
  tags     = local.tags

  lifecycle {
    # The region of a group is only where Azure keeps its list of resources. Replacing the group, which this would mean,
    # deletes what others put into it, and can't be done at all: it has to be created before it is destroyed, like all
    # that the subnet in network.tf depends on, and under the same name.
    ignore_changes = [location]
  }
}

locals {
  resource_group_name = var.create_resource_group ? azurerm_resource_group.main[0].name : var.resource_group_name
  resource_group_id = var.create_resource_group ? azurerm_resource_group.main[0].id : (
    "/subscriptions/${data.azurerm_client_config.current.subscription_id}/resourceGroups/${var.resource_group_name}"
  )
}
