# The resources' names, derived from name_pattern at plan time, so that the random provider is not needed.

locals {
  location = lower(replace(var.location, " ", ""))

  # The same subscription, project and environment always give the same hash.
  name_hash = substr(sha256(join("/", [data.azurerm_client_config.current.subscription_id, var.project, var.environment])), 0, 6)

  name_types = {
    resource_group          = "rg"
    function_app            = "func"
    service_plan            = "asp"
    identity                = "id"
    openai_account          = "oai"
    log_analytics_workspace = "log"
    application_insights    = "appi"
    virtual_network         = "vnet"
    subnet                  = "snet"
    network_security_group  = "nsg"
    private_endpoint        = "pep"
    action_group            = "ag"
    alert                   = "alert"
    budget                  = "budget"
    storage_account         = "st"
  }

  default_names = {
    for resource, type in local.name_types : resource => replace(replace(replace(replace(replace(
      var.name_pattern,
      "{type}", type), "{project}", var.project), "{environment}", var.environment), "{location}", local.location), "{hash}", local.name_hash
    )
  }

  # Storage accounts: 3 to 24 lower-case letters and digits. A longer name is truncated and ends in the hash.
  storage_name_characters = replace(lower(local.default_names.storage_account), "/[^a-z0-9]/", "")
  storage_name            = length(local.storage_name_characters) <= 24 ? local.storage_name_characters : "${substr(local.storage_name_characters, 0, 18)}${local.name_hash}"

  # What is created before it is destroyed (in network.tf the virtual network, in openai.tf the account) needs another name
  # in another region. The default region has none, so that what was created there keeps its name.
  region_suffixes = {
    for region in distinct([local.location, local.first_region]) : region => region == "eastus2" ? "" : "-${region}"
  }

  names = merge(local.default_names, { storage_account = local.storage_name }, var.names)

  tags = merge({ project = var.project, environment = var.environment }, var.tags)
}
