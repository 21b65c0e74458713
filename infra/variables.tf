# Input variables. All have defaults: `terraform apply` works without any.

# ---- Names and region ------------------------------------------------------------------------------------------------

variable "project" {
  type        = string
  description = "A short name of the product; part of every resource's name."
  default     = "relay"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,9}$", var.project))
    error_message = "project must be 2 to 10 lower-case letters and digits, beginning with a letter, for example \"relay\"."
  }
}

variable "environment" {
  type        = string
  description = "The environment, for example dev or prod; part of every resource's name."
  default     = "dev"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,7}$", var.environment))
    error_message = "environment must be 2 to 8 lower-case letters and digits, beginning with a letter, for example \"dev\"."
  }
}

variable "location" {
  type        = string
  description = "The Azure region of all resources except OpenAI accounts that set their own region, for example eastus2."
  default     = "eastus2"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{3,}$", lower(replace(var.location, " ", ""))))
    error_message = "location must be the name of an Azure region, for example eastus2 or \"East US 2\" (`az account list-locations -o table` lists them)."
  }
}

variable "resource_group_name" {
  type        = string
  description = "The resource group's name. By default it is derived from name_pattern."
  default     = null

  validation {
    condition     = var.resource_group_name == null || can(regex("^[-\\w._()]{0,89}[-\\w_()]$", var.resource_group_name))
    error_message = "resource_group_name must be 1 to 90 letters, digits, '-', '_', '.', '(' or ')', and not end in a full stop."
  }
}

variable "create_resource_group" {
  type        = bool
  description = "False deploys into the existing resource group resource_group_name, which `terraform destroy` then does not delete."
  default     = true
  nullable    = false

  validation {
    condition     = var.create_resource_group || var.resource_group_name != null
    error_message = "With create_resource_group = false, set resource_group_name to an existing resource group."
  }
}

variable "name_pattern" {
  type        = string
  description = "The pattern of the resources' names. {type} is the kind of resource (func, oai, st, ...); {hash} is derived from subscription, project and environment and makes names globally unique where they must be."
  default     = "{type}-{project}-{environment}-{hash}"
  nullable    = false

  validation {
    condition     = strcontains(var.name_pattern, "{type}")
    error_message = "name_pattern must contain {type}; without it all resources would have the same name."
  }

  validation {
    condition     = can(regex("^[a-zA-Z0-9-]+$", replace(var.name_pattern, "/\\{(type|project|environment|hash|location)\\}/", "x")))
    error_message = "name_pattern may contain only letters, digits, '-' and {type}, {project}, {environment}, {location}, {hash}."
  }
}

variable "names" {
  type        = map(string)
  description = "Names that override name_pattern, by resource: function_app, service_plan, storage_account, identity, openai_account, log_analytics_workspace, application_insights, virtual_network, subnet, network_security_group, action_group, budget."
  default     = {}
  nullable    = false

  validation {
    condition = alltrue([for resource in keys(var.names) : contains([
      "function_app", "service_plan", "storage_account", "identity", "openai_account", "log_analytics_workspace",
      "application_insights", "virtual_network", "subnet", "network_security_group", "action_group", "budget",
    ], resource)])
    error_message = "names may only have the keys function_app, service_plan, storage_account, identity, openai_account, log_analytics_workspace, application_insights, virtual_network, subnet, network_security_group, action_group, budget."
  }

  validation {
    condition     = can(regex("^[a-zA-Z0-9][a-zA-Z0-9-]{0,30}[a-zA-Z0-9]$", lookup(var.names, "function_app", "func")))
    error_message = "names.function_app must be 2 to 32 letters, digits and '-': the Functions host truncates its id to 32 characters, and two apps with the same first 32 would collide."
  }

  validation {
    condition     = can(regex("^[a-z0-9]{3,24}$", lookup(var.names, "storage_account", "storage")))
    error_message = "names.storage_account must be 3 to 24 lower-case letters and digits."
  }
}

variable "tags" {
  type        = map(string)
  description = "Tags for every resource, in addition to project and environment."
  default     = {}
  nullable    = false

  validation {
    condition     = length(var.tags) <= 40 && alltrue([for name, value in var.tags : length(name) <= 128 && length(value) <= 256 && !can(regex("[<>%&\\\\?/]", name))])
    error_message = "tags: at most 40, names of up to 128 characters without < > % & \\ ? /, values of up to 256 characters."
  }

  validation {
    condition     = !anytrue([for name in keys(var.tags) : startswith(name, "hidden-")])
    error_message = "tags: names that begin with \"hidden-\" are reserved by Azure; remove them."
  }
}

variable "register_resource_providers" {
  type        = bool
  description = "Register the resource providers that are used. Set it to false where the deployer lacks permission and an administrator has registered them."
  default     = true
  nullable    = false
}

# ---- Models ----------------------------------------------------------------------------------------------------------

variable "open_ai_instances" {
  type = list(object({
    name                  = optional(string)
    region                = optional(string)
    kind                  = optional(string, "AIServices")
    sku                   = optional(string, "S0")
    custom_subdomain_name = optional(string)
    priority              = optional(number)

    project_management_enabled = optional(bool, false)
    content_filter             = optional(any)

    models = optional(list(object({
      name                      = string
      format                    = optional(string, "OpenAI")
      version                   = optional(string)
      deployment_name           = optional(string)
      public_name               = optional(string)
      wire                      = optional(string, "chat")
      sku                       = optional(string, "GlobalStandard")
      capacity                  = optional(number, 50)
      content_filter            = optional(string)
      rai_policy_name           = optional(string)
      spillover_deployment_name = optional(string)
      version_upgrade_option    = optional(string, "OnceCurrentVersionExpired")
    })), [{ name = "gpt-5.4-mini", version = "2026-03-17" }])
  }))
  description = <<-EOT
    The Azure OpenAI (Foundry) accounts, and the models deployed on each.
    name: the account's name; only the first account can do without, and is then named by name_pattern. region: by
    default location. kind: AIServices (Foundry) or OpenAI; it applies when the account is created. sku: S0.
    custom_subdomain_name: the account's subdomain, globally unique (by default derived from the name and a hash).
    priority: the lowest is tried first; by default the position in the list. project_management_enabled: Foundry
    projects; applies when the account is created. content_filter: of the account's models, in place of the variable
    content_filter; where one account has an object, all need one.
    models: format (the maker: OpenAI, Mistral AI, DeepSeek, ...), name and version as in Azure's model catalogue;
    deployment_name (by default the model's name); public_name (the model name in requests, by default the model's name:
    the same model on two accounts is then one model with two backends); wire (the API that /stream uses: chat, or
    responses for models without chat completions and for summaries of the reasoning; embeddings for a model of
    embeddings); sku (GlobalStandard, DataZoneStandard, Standard or a provisioned one); capacity (thousands of tokens per
    minute, or provisioned units); content_filter (default, asynchronous or custom, in place of the variable
    content_filter) or rai_policy_name (a policy that exists on the account); spillover_deployment_name (see
    spillover_override.tf.example); version_upgrade_option.
    The first model of the first instance is the app's default model.
  EOT
  default     = [{}]
  nullable    = false

  validation {
    condition     = length(var.open_ai_instances) > 0 && alltrue([for instance in var.open_ai_instances : length(instance.models) > 0])
    error_message = "open_ai_instances needs at least one account, and each account at least one model."
  }

  validation {
    condition     = length(var.open_ai_instances) <= 100
    error_message = "open_ai_instances may name at most 100 accounts."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : instance.name == null || can(regex("^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,63}$", instance.name))])
    error_message = "open_ai_instances: a name is 2 to 64 letters, digits, '.', '-' or '_', beginning with a letter or digit."
  }

  validation {
    condition     = alltrue([for position, instance in var.open_ai_instances : position == 0 || instance.name != null])
    error_message = "open_ai_instances: every account but the first needs a name; without one, removing an account would replace those after it."
  }

  validation {
    condition     = length(distinct([for position, instance in var.open_ai_instances : coalesce(instance.name, "openai-${position + 1}")])) == length(var.open_ai_instances)
    error_message = "open_ai_instances: two accounts have the same name; names must be unique."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : instance.region == null || can(regex("^[a-z][a-z0-9]{3,}$", lower(replace(instance.region, " ", ""))))])
    error_message = "open_ai_instances: a region is the name of an Azure region, for example swedencentral."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : contains(["AIServices", "OpenAI"], instance.kind)])
    error_message = "open_ai_instances: the kind of an account is AIServices (Foundry) or OpenAI."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : instance.kind == "AIServices" || !instance.project_management_enabled])
    error_message = "open_ai_instances: project_management_enabled needs an account of the kind AIServices."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : instance.kind == "AIServices" || model.format == "OpenAI"]]))
    error_message = "open_ai_instances: an account of the kind OpenAI has models of the format OpenAI only; models of other makers need AIServices."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : instance.sku == "S0"])
    error_message = "open_ai_instances: the sku of an Azure OpenAI account is S0; a model's throughput is set by the sku and capacity of its deployment."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : instance.custom_subdomain_name == null || can(regex("^[a-z0-9][a-z0-9-]{0,62}[a-z0-9]$", instance.custom_subdomain_name))])
    error_message = "open_ai_instances: a custom_subdomain_name is 2 to 64 lower-case letters, digits and '-', beginning and ending with a letter or digit."
  }

  validation {
    condition = length(distinct([for instance in var.open_ai_instances : instance.custom_subdomain_name if instance.custom_subdomain_name != null])) == length(
      [for instance in var.open_ai_instances : instance.custom_subdomain_name if instance.custom_subdomain_name != null]
    )
    error_message = "open_ai_instances: two accounts have the same custom_subdomain_name; it must be globally unique."
  }

  validation {
    condition     = alltrue([for instance in var.open_ai_instances : instance.priority == null || try(instance.priority >= 0 && instance.priority <= 1000 && floor(instance.priority) == instance.priority, false)])
    error_message = "open_ai_instances: a priority is a whole number from 0 to 1000; the lowest is tried first."
  }

  validation {
    condition = alltrue([for instance in var.open_ai_instances : length(instance.models) == length(distinct(
      [for model in instance.models : lower(coalesce(model.deployment_name, model.name))]
    ))])
    error_message = "open_ai_instances: an account has two deployments of the same name; set a different deployment_name for one."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : can(regex("^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,63}$", coalesce(model.deployment_name, model.name)))]]))
    error_message = "open_ai_instances: a model's name and its deployment_name are 2 to 64 letters, digits, '.', '-' or '_'."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : model.version != null && model.version != ""]]))
    error_message = "open_ai_instances: a model needs a version; without one, Azure chooses it and no plan is ever empty. This lists them: az cognitiveservices model list --location REGION --output table --query \"[].{format:model.format, name:model.name, version:model.version}\"."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : model.format != "" && model.public_name != "" && model.rai_policy_name != "" && model.spillover_deployment_name != ""]]))
    error_message = "open_ai_instances: omit format, public_name, rai_policy_name or spillover_deployment_name instead of setting it to \"\"."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : contains(["default", "asynchronous", "custom"], coalesce(model.content_filter, "default"))]]))
    error_message = "open_ai_instances: the content_filter of a model is default, asynchronous or custom (what the variable content_filter describes)."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : model.content_filter == null || model.rai_policy_name == null]]))
    error_message = "open_ai_instances: set content_filter or rai_policy_name of a model, not both."
  }

  validation {
    condition     = can(tostring(var.content_filter)) ? alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : model.content_filter != "custom" || can(keys(instance.content_filter))]])) : true
    error_message = "open_ai_instances: content_filter = \"custom\" of a model needs the account, or the variable content_filter, to describe it: content_filter = { ... }."
  }

  validation {
    condition = alltrue([
      for instance in var.open_ai_instances : instance.content_filter == null ? true : (
        can(tostring(instance.content_filter)) ? contains(["default", "asynchronous"], try(tostring(instance.content_filter), "")) :
        can(keys(instance.content_filter)) && length(setsubtract(try(keys(instance.content_filter), []), ["mode", "base_policy_name", "content_filters"])) == 0
      )
    ])
    error_message = "open_ai_instances: the content_filter of an account is \"default\", \"asynchronous\", or an object { mode, base_policy_name, content_filters }."
  }

  validation {
    condition = alltrue(flatten([for instance in var.open_ai_instances : [
      for model in instance.models : model.spillover_deployment_name == null || (
        endswith(model.sku, "ProvisionedManaged") && contains([for other in instance.models : coalesce(other.deployment_name, other.name) if other != model], coalesce(model.spillover_deployment_name, "none"))
      )
    ]]))
    error_message = "open_ai_instances: spillover_deployment_name is for a provisioned deployment, and names another deployment of the same account."
  }

  validation {
    condition = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : contains(
      ["GlobalStandard", "DataZoneStandard", "Standard", "GlobalProvisionedManaged", "DataZoneProvisionedManaged", "ProvisionedManaged"], model.sku
    )]]))
    error_message = "open_ai_instances: a model's sku is GlobalStandard, DataZoneStandard, Standard, GlobalProvisionedManaged, DataZoneProvisionedManaged or ProvisionedManaged (batch deployments cannot stream)."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : contains(["chat", "responses", "embeddings"], model.wire)]]))
    error_message = "open_ai_instances: a model's wire is chat, responses or embeddings."
  }

  validation {
    condition     = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : try(model.capacity >= 1 && floor(model.capacity) == model.capacity, false)]]))
    error_message = "open_ai_instances: capacity is a whole number of at least 1 (thousands of tokens per minute, or provisioned units)."
  }

  validation {
    condition = alltrue(flatten([for instance in var.open_ai_instances : [for model in instance.models : contains(
      ["OnceCurrentVersionExpired", "OnceNewDefaultVersionAvailable", "NoAutoUpgrade"], model.version_upgrade_option
    )]]))
    error_message = "open_ai_instances: version_upgrade_option is OnceCurrentVersionExpired (keeps the version, survives its retirement), OnceNewDefaultVersionAvailable or NoAutoUpgrade."
  }
}

variable "content_filter" {
  type        = any
  description = "The content filter of the models: \"default\" (Azure's own), \"asynchronous\" (the same filters beside the stream instead of before each part of it: smoother, but text can be seen before it is rejected), or an object with mode (Default, Deferred, Blocking, Asynchronous_filter), base_policy_name and content_filters, the members of azurerm_cognitive_account_rai_policy; all of them have defaults."
  default     = "default"
  nullable    = false

  validation {
    condition     = can(tostring(var.content_filter)) ? contains(["default", "asynchronous"], try(tostring(var.content_filter), "")) : can(keys(var.content_filter))
    error_message = "content_filter is \"default\", \"asynchronous\", or an object { mode, base_policy_name, content_filters }."
  }

  validation {
    condition     = length(setsubtract(try(keys(var.content_filter), []), ["mode", "base_policy_name", "content_filters"])) == 0
    error_message = "content_filter: an object may only have the members mode, base_policy_name and content_filters."
  }

  validation {
    condition     = contains(["Default", "Deferred", "Blocking", "Asynchronous_filter"], try(coalesce(var.content_filter.mode), "Default"))
    error_message = "content_filter: mode is Default, Deferred, Blocking or Asynchronous_filter."
  }

  validation {
    condition = alltrue([
      for filter in try(var.content_filter.content_filters, []) :
      can(coalesce(filter.name)) && contains(["Prompt", "Completion"], try(filter.source, "")) && contains(["Low", "Medium", "High"], try(coalesce(filter.severity_threshold), "Low"))
    ])
    error_message = "content_filter: each of content_filters has a name (Hate, Sexual, Selfharm, Violence, Jailbreak, ...), a source (Prompt or Completion) and, for the first four, a severity_threshold (Low, Medium or High)."
  }
}

variable "customer_managed_key" {
  type = object({
    key_vault_key_id   = string
    identity_id        = string
    identity_client_id = string
  })
  description = "A key of yours that encrypts the accounts' data at rest: the key's id in its key vault, and the user-assigned identity that may use it (Key Vault Crypto Service Encryption User). The vault needs soft delete and purge protection. Null: Microsoft's keys."
  default     = null

  validation {
    condition     = var.customer_managed_key == null || can(regex("^https://[^/]+/keys/[^/]+(/[0-9a-f]+)?$", var.customer_managed_key.key_vault_key_id))
    error_message = "customer_managed_key.key_vault_key_id must be the id of a key, for example https://NAME.vault.azure.net/keys/KEY/VERSION."
  }

  validation {
    condition     = var.customer_managed_key == null || can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.ManagedIdentity/userAssignedIdentities/[^/]+$", var.customer_managed_key.identity_id))
    error_message = "customer_managed_key.identity_id must be the id of a user-assigned identity: /subscriptions/.../userAssignedIdentities/NAME."
  }

  validation {
    condition     = var.customer_managed_key == null || can(regex("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", var.customer_managed_key.identity_client_id))
    error_message = "customer_managed_key.identity_client_id must be the client id of that identity, such as 00000000-0000-0000-0000-000000000000."
  }
}

# ---- The app ---------------------------------------------------------------------------------------------------------

variable "instance_memory_in_mb" {
  type        = number
  description = "Memory of one instance of the app; its CPU share grows with the memory."
  default     = 2048
  nullable    = false

  validation {
    condition     = contains([512, 2048, 4096], var.instance_memory_in_mb)
    error_message = "instance_memory_in_mb must be 512, 2048 or 4096."
  }
}

variable "maximum_instance_count" {
  type        = number
  description = "Maximum number of instances: limits the app's cost and, times http_concurrency, the number of open streams."
  default     = 40
  nullable    = false

  validation {
    condition     = var.maximum_instance_count >= 1 && var.maximum_instance_count <= 1000 && floor(var.maximum_instance_count) == var.maximum_instance_count
    error_message = "maximum_instance_count must be a whole number from 1 to 1000."
  }
}

variable "http_concurrency" {
  type        = number
  description = "Streams that one instance serves concurrently. A stream counts from its first byte to its last. Azure's default for Python is 1: one instance per stream."
  default     = 100
  nullable    = false

  validation {
    condition     = var.http_concurrency >= 2 && var.http_concurrency <= 1000 && floor(var.http_concurrency) == var.http_concurrency
    error_message = "http_concurrency must be a whole number from 2 to 1000; with 1 every open stream would need a separate instance."
  }
}

variable "always_ready_instances" {
  type        = number
  description = "Always-ready instances for HTTP. 0 scales to zero; 1 avoids the cold start of the first request and is billed continuously."
  default     = 0
  nullable    = false

  validation {
    condition     = var.always_ready_instances >= 0 && var.always_ready_instances <= var.maximum_instance_count && floor(var.always_ready_instances) == var.always_ready_instances
    error_message = "always_ready_instances must be a whole number from 0 to maximum_instance_count."
  }

  validation {
    condition     = !var.zone_redundant || var.always_ready_instances != 1
    error_message = "always_ready_instances must be 0 or at least 2 with zone_redundant = true: one instance is in one zone only."
  }
}

variable "zone_redundant" {
  type        = bool
  description = "Spreads the app's instances and its storage over the region's availability zones; the region must have them. Changing it replaces the plan, the app and the storage account."
  default     = false
  nullable    = false
}

variable "relay_settings" {
  type        = map(string)
  description = "App settings of the relay to override, for example { MAX_OUTPUT_TOKENS = \"4096\" }. docs/configure.md lists them."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for setting in keys(var.relay_settings) : contains(local.relay_setting_names, setting)])
    error_message = "relay_settings may only have the keys ${join(", ", local.relay_setting_names)}. Endpoints, models and identity are set by Terraform; an API key is not used."
  }

  validation {
    condition     = alltrue([for value in values(var.relay_settings) : can(regex("^[0-9]{1,12}(\\.[0-9]{1,6})?$", value))])
    error_message = "relay_settings: each value must be a number in quotes, for example \"30\"."
  }

  validation {
    condition = alltrue([
      for setting, value in var.relay_settings :
      try(tonumber(value) >= local.relay_setting_ranges[setting][0] && tonumber(value) <= local.relay_setting_ranges[setting][1], true)
    ])
    error_message = "relay_settings: a value is out of range. The ranges are ${join(", ", [for setting, range in local.relay_setting_ranges : "${setting} ${range[0]} to ${range[1]}"])}."
  }
}

variable "chat_settings" {
  type        = map(string)
  description = "App settings of the chat page, for example { CHAT_NAME = \"Contoso Chat\" }. docs/chat-page.md lists them."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for setting in keys(var.chat_settings) : contains(local.chat_setting_names, setting)])
    error_message = "chat_settings may only have the keys ${join(", ", local.chat_setting_names)}."
  }
}

variable "deploy_code" {
  type        = bool
  description = "Publish the app's code in the same apply. Set it to false where a pipeline runs the command in the output publish_command instead."
  default     = true
  nullable    = false
}

variable "check_health" {
  type        = bool
  description = "After publishing, wait until /health returns 200, so that an app that does not start fails the apply. Set it to false where the deployer may publish but not call the app, for example from outside allowed_ip_ranges."
  default     = true
  nullable    = false
}

variable "remote_build" {
  type        = bool
  description = "Azure installs the app's Python packages after publishing. False installs them on the deployer's machine instead, as wheels for Linux whose hashes are verified: for networks in which Azure's build can't reach the package index, and for days on which it fails. Needs pip."
  default     = true
  nullable    = false
}

variable "rolling_updates" {
  type        = bool
  description = "Let open streams finish when the app is updated (Flex Consumption's rolling updates, in preview). By default an update ends them."
  default     = false
  nullable    = false
}

variable "python" {
  type        = string
  description = "The Python 3 that runs the publish script on the deployer's machine; on Windows usually \"python\"."
  default     = "python3"
  nullable    = false

  validation {
    condition     = length(trimspace(var.python)) > 0
    error_message = "python must name a Python 3 interpreter, for example python3."
  }
}

# ---- Landing zone ----------------------------------------------------------------------------------------------------

variable "vnet_integration" {
  type = object({
    subnet_id            = optional(string)
    address_space        = optional(string, "10.80.0.0/24")
    virtual_network_name = optional(string)
  })
  description = "Connects the app to a subnet, and restricts the OpenAI accounts to that subnet. {} creates a virtual network; subnet_id selects an existing subnet, which must be delegated to Microsoft.App/environments and, without private_endpoints, have the service endpoint Microsoft.CognitiveServices (with closed_storage also Microsoft.Storage)."
  default     = null

  validation {
    condition     = try(var.vnet_integration.subnet_id, null) == null || can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$", var.vnet_integration.subnet_id))
    error_message = "vnet_integration.subnet_id must be the id of a subnet: /subscriptions/.../virtualNetworks/NAME/subnets/NAME."
  }

  validation {
    condition     = var.vnet_integration == null || try(can(regex("^[0-9.]+/", var.vnet_integration.address_space)) && can(cidrhost(var.vnet_integration.address_space, 0)) && tonumber(split("/", var.vnet_integration.address_space)[1]) <= 27, false)
    error_message = "vnet_integration.address_space must be an IPv4 range of /27 or larger, for example 10.80.0.0/24."
  }
}

variable "private_endpoints" {
  type = object({
    subnet_id                 = string
    openai_dns_zone_ids       = optional(list(string), [])
    function_app              = optional(bool, false)
    function_app_dns_zone_ids = optional(list(string), [])
    storage_dns_zone_ids      = optional(list(string), [])
  })
  description = "Private endpoints for the OpenAI accounts in an existing subnet, which disable their public access; with function_app = true also for the app, which is then reachable, and can be published to, only from that network; with closed_storage = true also for the storage. The DNS zones must exist: for the accounts privatelink.openai.azure.com, privatelink.cognitiveservices.azure.com and privatelink.services.ai.azure.com, for the app privatelink.azurewebsites.net, for the storage privatelink.blob.core.windows.net. Omit the ids where Azure Policy adds them."
  default     = null

  validation {
    condition     = var.private_endpoints == null || can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$", var.private_endpoints.subnet_id))
    error_message = "private_endpoints.subnet_id must be the id of a subnet: /subscriptions/.../virtualNetworks/NAME/subnets/NAME."
  }

  validation {
    condition     = var.private_endpoints == null || try(var.vnet_integration.subnet_id, null) != null
    error_message = "private_endpoints requires vnet_integration with a subnet_id: the app reaches the accounts from an existing network that the endpoints' network is, or is peered with; a network created here is neither."
  }

  validation {
    condition = var.private_endpoints == null || alltrue([
      for id in concat(try(var.private_endpoints.openai_dns_zone_ids, []), try(var.private_endpoints.function_app_dns_zone_ids, []), try(var.private_endpoints.storage_dns_zone_ids, [])) :
      can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/privateDnsZones/[^/]+$", id))
    ])
    error_message = "private_endpoints: a DNS zone's id is /subscriptions/.../providers/Microsoft.Network/privateDnsZones/NAME."
  }
}

variable "closed_storage" {
  type        = bool
  description = "Closes the app's storage account to the internet: the app reaches it from its subnet (an existing one needs the service endpoint Microsoft.Storage), or with private_endpoints through an endpoint. Requires vnet_integration."
  default     = false
  nullable    = false

  validation {
    condition     = !var.closed_storage || var.vnet_integration != null
    error_message = "closed_storage requires vnet_integration: without it the app could not reach its storage."
  }
}

variable "lock" {
  type        = bool
  description = "A lock of the resource group against deletion. Set it to false, and apply, before anything in the group is deleted or replaced. The deployer needs Microsoft.Authorization/locks/write (Owner)."
  default     = false
  nullable    = false
}

variable "allowed_ip_ranges" {
  type        = list(string)
  description = "The only addresses that may call the app, as IPv4 ranges, for example [\"203.0.113.0/24\"]. Empty: any address, with a key. Include the machine that deploys, or set check_health = false: otherwise the check of /health at the end of an apply is rejected."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for range in var.allowed_ip_ranges : can(cidrhost(range, 0)) && can(regex("^[0-9.]+/[0-9]+$", range))])
    error_message = "allowed_ip_ranges must be IPv4 ranges, for example 203.0.113.0/24, or 203.0.113.7/32 for one address."
  }

  validation {
    condition     = !anytrue([for range in var.allowed_ip_ranges : endswith(range, "/0")])
    error_message = "allowed_ip_ranges: a range that ends in /0 allows everyone; leave the list empty instead."
  }
}

variable "cors_allowed_origins" {
  type        = list(string)
  description = "Origins whose pages may call the app from a browser, for example [\"https://www.example.com\"]. The app's own chat page needs none."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for origin in var.cors_allowed_origins : can(regex("^https?://[^/*\\s]+$", origin))])
    error_message = "cors_allowed_origins must be origins without a path or a wildcard, for example https://www.example.com."
  }
}

variable "entra_sign_in" {
  type = object({
    client_id            = string
    tenant_id            = optional(string)
    allowed_audiences    = optional(list(string), [])
    allowed_applications = optional(list(string), [])
    allowed_groups       = optional(list(string), [])
  })
  description = "Entra ID sign-in instead of function keys: client_id of the app registration; tenant_id (by default the deployer's); allowed_audiences in addition to the client id and api://<client id>; allowed_applications (client ids) and allowed_groups (object ids) that may call the app, by default all in the tenant."
  default     = null

  validation {
    condition = var.entra_sign_in == null || alltrue([
      for id in concat([try(var.entra_sign_in.client_id, "")], compact([try(var.entra_sign_in.tenant_id, "")]), try(var.entra_sign_in.allowed_applications, []), try(var.entra_sign_in.allowed_groups, [])) :
      can(regex("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", id))
    ])
    error_message = "entra_sign_in: client_id, tenant_id, allowed_applications and allowed_groups must be ids such as 00000000-0000-0000-0000-000000000000."
  }
}

# ---- Monitoring and cost ---------------------------------------------------------------------------------------------

variable "log_analytics_workspace_id" {
  type        = string
  description = "The id of an existing Log Analytics workspace. By default a new one is created."
  default     = null

  validation {
    condition     = var.log_analytics_workspace_id == null || can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.OperationalInsights/workspaces/[^/]+$", var.log_analytics_workspace_id))
    error_message = "log_analytics_workspace_id must be the id of a workspace: /subscriptions/.../providers/Microsoft.OperationalInsights/workspaces/NAME."
  }
}

variable "request_response_logs" {
  type        = bool
  description = "Also log each call of a model: its time, caller's address, duration and status, without prompts and answers. Billed by the gigabyte; about 1 kB a call."
  default     = false
  nullable    = false
}

variable "log_retention_in_days" {
  type        = number
  description = "The retention period of logs, in days."
  default     = 30
  nullable    = false

  validation {
    condition     = contains([30, 60, 90, 120, 180, 270, 365, 550, 730], var.log_retention_in_days)
    error_message = "log_retention_in_days must be 30, 60, 90, 120, 180, 270, 365, 550 or 730."
  }
}

variable "daily_log_cap_in_gb" {
  type        = number
  description = "Gigabytes of telemetry per day; beyond it nothing is ingested, or billed, until the next day."
  default     = 1
  nullable    = false

  validation {
    condition     = var.daily_log_cap_in_gb >= 0.1 && var.daily_log_cap_in_gb <= 1000
    error_message = "daily_log_cap_in_gb must be from 0.1 to 1000."
  }
}

variable "alert_emails" {
  type        = list(string)
  description = "The addresses that are notified when streams fail. If empty, no alert rules are created (each has a small cost)."
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for address in var.alert_emails : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", address))])
    error_message = "alert_emails must be e-mail addresses."
  }
}

variable "alert_thresholds" {
  type = object({
    failed_percent       = optional(number, 10)
    rate_limited_percent = optional(number, 10)
    minimum_streams      = optional(number, 10)
  })
  description = "When an alert fires: the share of failed and of rate-limited streams in the last 15 minutes, out of at least minimum_streams."
  default     = {}
  nullable    = false

  validation {
    condition = alltrue([
      var.alert_thresholds.failed_percent > 0, var.alert_thresholds.failed_percent < 100,
      var.alert_thresholds.rate_limited_percent > 0, var.alert_thresholds.rate_limited_percent < 100,
      var.alert_thresholds.minimum_streams >= 1,
    ])
    error_message = "alert_thresholds: failed_percent and rate_limited_percent must be above 0 and below 100, minimum_streams at least 1."
  }
}

variable "monthly_budget" {
  type        = number
  description = "A monthly budget of the resource group in the subscription's currency, which notifies alert_emails and the owners at 80 % spent and at 100 % forecast. Null: no budget. It only notifies; it stops nothing."
  default     = null

  validation {
    condition     = var.monthly_budget == null || try(var.monthly_budget > 0, false)
    error_message = "monthly_budget must be above 0, or null."
  }
}

# ---- Callers ---------------------------------------------------------------------------------------------------------

variable "callers" {
  type = map(object({
    key_digests = optional(list(string), [])
    principals  = optional(list(string), [])
    models      = optional(list(string))
    limits = optional(object({
      requests_per_minute = optional(number)
      tokens_per_minute   = optional(number)
      tokens_per_day      = optional(number)
      streams             = optional(number)
    }), {})
  }))
  description = "Who may call the app, by name, in place of the function key (docs/callers.md). key_digests: the SHA-256 of each key, which `make key NAME=...` prints; principals: with entra_sign_in, object ids or client ids; models: those that the caller may use, by default all; limits: its own, by default caller_limits."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for name in keys(var.callers) : can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$", name))])
    error_message = "callers: a name is 1 to 31 letters, digits, '.', '_' or '-', beginning with a letter or digit."
  }

  validation {
    condition     = alltrue(flatten([for caller in values(var.callers) : [for digest in caller.key_digests : can(regex("^[0-9a-fA-F]{64}$", digest))]]))
    error_message = "callers: a key digest is 64 hexadecimal digits, the SHA-256 of a key and never the key itself; `make key NAME=...` prints it."
  }

  validation {
    condition     = alltrue(flatten([for caller in values(var.callers) : [for id in caller.principals : can(regex("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", id))]]))
    error_message = "callers: a principal is the object id or client id of an Entra identity, such as 00000000-0000-0000-0000-000000000000."
  }

  validation {
    condition     = alltrue([for caller in values(var.callers) : var.entra_sign_in == null ? length(caller.key_digests) > 0 && length(caller.principals) == 0 : length(caller.principals) > 0 && length(caller.key_digests) == 0])
    error_message = "callers: each caller has key_digests, or with entra_sign_in principals instead."
  }

  validation {
    condition = alltrue(flatten([for caller in values(var.callers) : [
      for amount in values(caller.limits) : amount == null || try(amount >= 1 && amount <= 1000000000000 && floor(amount) == amount, false)
    ]]))
    error_message = "callers: a limit is a whole number of at least 1."
  }

  validation {
    condition     = alltrue([for caller in values(var.callers) : caller.models == null || try(length(caller.models) > 0, false)])
    error_message = "callers: models names at least one model, or is left out to allow all."
  }
}

variable "caller_limits" {
  type = object({
    requests_per_minute = optional(number)
    tokens_per_minute   = optional(number)
    tokens_per_day      = optional(number)
    streams             = optional(number)
  })
  description = "The limits of each caller that has none of its own in callers; with entra_sign_in also of everyone else who signs in."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for amount in values(var.caller_limits) : amount == null || try(amount >= 1 && amount <= 1000000000000 && floor(amount) == amount, false)])
    error_message = "caller_limits: a limit is a whole number of at least 1."
  }

  validation {
    condition     = alltrue([for amount in values(var.caller_limits) : amount == null]) || length(var.callers) > 0 || var.entra_sign_in != null
    error_message = "caller_limits requires callers or entra_sign_in: only a caller that is known has limits."
  }
}

variable "limits_store" {
  type        = bool
  description = "Count what callers use in a table of the app's storage account, for all instances together. By default each instance counts for itself."
  default     = false
  nullable    = false

  validation {
    condition     = !var.limits_store || length(var.callers) > 0 || var.entra_sign_in != null
    error_message = "limits_store requires callers or entra_sign_in: only a caller that is known has limits."
  }
}

variable "token_prices" {
  type = map(object({
    input        = number
    cached_input = optional(number)
    output       = optional(number)
  }))
  description = "What a million tokens of each model cost, in a currency of your choice, for the cost in the records and the workbook. A model that is not named has no cost."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue(flatten([for price in values(var.token_prices) : [for amount in values(price) : amount == null || try(amount >= 0 && amount < 1000000000, false)]]))
    error_message = "token_prices: a price is a number from 0, of a million tokens."
  }
}
