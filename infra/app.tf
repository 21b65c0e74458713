# The Function App on a Flex Consumption plan, and its app settings.

locals {
  # The settings of relay/settings.py that an operator may change, with minimum and maximum; a test compares the two.
  relay_setting_ranges = {
    COMMIT_WAIT_SECONDS              = [0, 60]
    FAILOVER_AFTER_SECONDS           = [0.1, 3600]
    MAX_BODY_BYTES                   = [1, 104857600]
    MAX_OUTPUT_TOKENS                = [1, 1000000]
    PING_INTERVAL_SECONDS            = [0.05, 200]
    RESUMABLE_GRACE_SECONDS          = [0, 3600]
    RESUMABLE_KEEP                   = [0, 1]
    RESUMABLE_STREAMS                = [0, 1]
    STREAM_DEADLINE_SECONDS          = [0.1, 1500]
    UPSTREAM_CONNECT_TIMEOUT_SECONDS = [0.1, 60]
    UPSTREAM_SILENCE_TIMEOUT_SECONDS = [0.1, 3600]
  }
  relay_setting_names = keys(local.relay_setting_ranges)

  # The settings of the chat page; a test compares the names.
  chat_setting_names = ["CHAT_EXAMPLES", "CHAT_GREETING", "CHAT_MODELS", "CHAT_NAME", "CHAT_NOTICE", "CHAT_PAGE"]

  app_settings = merge(
    {
      # The host's own storage, accessed by identity. The publish step deletes the plain AzureWebJobsStorage, which the
      # provider writes on every change of the app (terraform-provider-azurerm #29149, #29693).
      # By address and not by AzureWebJobsStorage__accountName: terraform-provider-azurerm #29099 takes that one out of
      # app_settings when it reads the app, and no plan would then be empty. Only blobs are used.
      AzureWebJobsStorage__blobServiceUri = azurerm_storage_account.app.primary_blob_endpoint
      AzureWebJobsStorage__credential     = "managedidentity"
      AzureWebJobsStorage__clientId       = azurerm_user_assigned_identity.app.client_id

      # The identity that the app requests tokens for.
      AZURE_CLIENT_ID = azurerm_user_assigned_identity.app.client_id

      # Every deployment, the default model's first.
      AZURE_OPENAI_BACKENDS = jsonencode([
        for deployment in local.deployments : {
          name       = deployment.key
          endpoint   = local.endpoints[deployment.instance]
          deployment = deployment.name
          model      = deployment.public_name
          priority   = deployment.priority
          wire       = deployment.wire
        }
      ])

      # The chat page is at the root, instead of the platform's own page.
      AzureWebJobsDisableHomepage = "true"

      # The host reads a body with a length into memory, whatever the route, before the app is called: it refuses one
      # that is far beyond the app's own limit. A body that exceeds that limit by less gets the app's 413.
      FUNCTIONS_REQUEST_BODY_SIZE_LIMIT = tostring(4 * tonumber(lookup(var.relay_settings, "MAX_BODY_BYTES", "1048576")))

      # APPLICATIONINSIGHTS_CONNECTION_STRING is set in site_config below, from where the provider reads it back.
      APPLICATIONINSIGHTS_AUTHENTICATION_STRING   = "ClientId=${azurerm_user_assigned_identity.app.client_id};Authorization=AAD"
      PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY = "true"
      # Record every stream; the default sampler of Azure Monitor's distribution keeps five a second.
      OTEL_TRACES_SAMPLER = "always_on"
    },
    # With Entra sign-in the functions require no key in addition.
    var.entra_sign_in == null ? {} : { HTTP_AUTH_LEVEL = "anonymous" },
    local.caller_settings,
    var.relay_settings,
    var.chat_settings,
  )
}

resource "azurerm_service_plan" "app" {
  # checkov:skip=CKV_AZURE_212:Flex Consumption scales the instance count itself; the argument has no effect on FC1.
  # checkov:skip=CKV_AZURE_211:FC1 is a production plan: the only serverless one with Python 3.13, virtual networks and concurrency.
  # checkov:skip=CKV_AZURE_225:zone_redundant turns it on; it is off by default since always-ready instances then cost at least double.
  name                = local.names.service_plan
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags
  os_type             = "Linux"
  sku_name            = "FC1"

  zone_balancing_enabled = var.zone_redundant
}

resource "azurerm_function_app_flex_consumption" "app" {
  name                = local.names.function_app
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags
  service_plan_id     = azurerm_service_plan.app.id

  runtime_name    = "python"
  runtime_version = "3.13"

  instance_memory_in_mb  = var.instance_memory_in_mb
  maximum_instance_count = var.maximum_instance_count
  http_concurrency       = var.http_concurrency

  dynamic "always_ready" {
    for_each = var.always_ready_instances > 0 ? [var.always_ready_instances] : []

    content {
      name           = "http"
      instance_count = always_ready.value
    }
  }

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.app.id]
  }

  storage_container_type            = "blobContainer"
  storage_container_endpoint        = "${azurerm_storage_account.app.primary_blob_endpoint}${azurerm_storage_container.code.name}"
  storage_authentication_type       = "UserAssignedIdentity"
  storage_user_assigned_identity_id = azurerm_user_assigned_identity.app.id

  https_only                                     = true
  webdeploy_publish_basic_authentication_enabled = false
  public_network_access_enabled                  = !local.app_is_private
  virtual_network_subnet_id                      = local.app_subnet_id

  app_settings = local.app_settings

  site_config {
    minimum_tls_version     = "1.2"
    scm_minimum_tls_version = "1.2"

    application_insights_connection_string = azurerm_application_insights.app.connection_string

    ip_restriction_default_action = length(var.allowed_ip_ranges) > 0 ? "Deny" : "Allow"

    dynamic "ip_restriction" {
      for_each = var.allowed_ip_ranges

      content {
        name       = "allowed-${ip_restriction.key + 1}"
        action     = "Allow"
        priority   = 100 + ip_restriction.key
        ip_address = ip_restriction.value
      }
    }

    dynamic "cors" {
      for_each = length(var.cors_allowed_origins) > 0 ? [var.cors_allowed_origins] : []

      content {
        allowed_origins = cors.value
      }
    }
  }

  dynamic "auth_settings_v2" {
    for_each = var.entra_sign_in == null ? [] : [var.entra_sign_in]

    content {
      auth_enabled           = true
      require_authentication = true
      require_https          = true
      default_provider       = "azureactivedirectory"
      unauthenticated_action = "RedirectToLoginPage"
      # The check at the end of an apply, and a load balancer's probe, have no identity; /health reveals nothing.
      excluded_paths = ["/health"]

      active_directory_v2 {
        client_id            = auth_settings_v2.value.client_id
        tenant_auth_endpoint = "https://login.microsoftonline.com/${coalesce(auth_settings_v2.value.tenant_id, data.azurerm_client_config.current.tenant_id)}/v2.0"
        allowed_audiences = distinct(concat(
          [auth_settings_v2.value.client_id, "api://${auth_settings_v2.value.client_id}"], auth_settings_v2.value.allowed_audiences
        ))
        allowed_applications = auth_settings_v2.value.allowed_applications
        allowed_groups       = auth_settings_v2.value.allowed_groups
      }

      login {
        token_store_enabled = false
      }
    }
  }

  lifecycle {
    # Azure adds this tag itself; removing it would restart the app on every apply.
    ignore_changes = [tags["hidden-link: /app-insights-resource-id"]]

    precondition {
      condition     = length(local.names.function_app) <= 32
      error_message = "The Function App's name, ${local.names.function_app}, is longer than 32 characters, to which the Functions host truncates its id. Shorten name_pattern, or set names.function_app."
    }
  }

  # Without its roles the app starts, fails and is slow to retry.
  depends_on = [
    azurerm_role_assignment.storage,
    azurerm_role_assignment.openai,
    azurerm_role_assignment.telemetry,
    azurerm_cognitive_deployment.model,
  ]
}
