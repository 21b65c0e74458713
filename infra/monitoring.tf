# Log Analytics, Application Insights, diagnostic settings and the workbook.

resource "azurerm_log_analytics_workspace" "main" {
  count = var.log_analytics_workspace_id == null ? 1 : 0

  name                         = local.names.log_analytics_workspace
  resource_group_name          = local.resource_group_name
  location                     = local.location
  tags                         = local.tags
  sku                          = "PerGB2018"
  retention_in_days            = var.log_retention_in_days
  daily_quota_gb               = var.daily_log_cap_in_gb
  local_authentication_enabled = false
}

locals {
  log_analytics_workspace_id = var.log_analytics_workspace_id == null ? azurerm_log_analytics_workspace.main[0].id : var.log_analytics_workspace_id
}

resource "azurerm_application_insights" "app" {
  name                         = local.names.application_insights
  resource_group_name          = local.resource_group_name
  location                     = local.location
  tags                         = local.tags
  application_type             = "web"
  workspace_id                 = local.log_analytics_workspace_id
  retention_in_days            = var.log_retention_in_days
  daily_data_cap_in_gb         = var.daily_log_cap_in_gb
  local_authentication_enabled = false
}

# Audit logs and metrics of the accounts. None of these logs contains prompts or answers.
resource "azurerm_monitor_diagnostic_setting" "openai" {
  for_each = azurerm_cognitive_account.openai

  name                       = "workspace"
  target_resource_id         = each.value.id
  log_analytics_workspace_id = local.log_analytics_workspace_id

  # RequestResponse: one record for each call of a model, with its caller's address and duration.
  dynamic "enabled_log" {
    for_each = var.request_response_logs ? ["Audit", "RequestResponse"] : ["Audit"]

    content {
      category = enabled_log.value
    }
  }

  enabled_metric {
    category = "AllMetrics"
  }
}

# Deletions in the code storage. Reads and writes are the host's own heartbeat and would be most of the cost.
resource "azurerm_monitor_diagnostic_setting" "storage" {
  name                       = "workspace"
  target_resource_id         = "${azurerm_storage_account.app.id}/blobServices/default"
  log_analytics_workspace_id = local.log_analytics_workspace_id

  enabled_log {
    category = "StorageDelete"
  }

  enabled_metric {
    category = "Transaction"
  }
}

# Platform metrics, such as instance counts, and sign-in logs; the app's own logs are in Application Insights.
resource "azurerm_monitor_diagnostic_setting" "app" {
  name                       = "workspace"
  target_resource_id         = azurerm_function_app_flex_consumption.app.id
  log_analytics_workspace_id = local.log_analytics_workspace_id

  dynamic "enabled_log" {
    for_each = var.entra_sign_in == null ? [] : ["AppServiceAuthenticationLogs"]

    content {
      category = enabled_log.value
    }
  }

  enabled_metric {
    category = "AllMetrics"
  }
}

# ---- Queries ---------------------------------------------------------------------------------------------------------

locals {
  # The telemetry attributes of a stream (relay/telemetry.py); infra/ names them only here.
  telemetry_attributes = {
    operation           = "gen_ai.operation.name"
    model               = "gen_ai.request.model"
    input_tokens        = "gen_ai.usage.input_tokens"
    output_tokens       = "gen_ai.usage.output_tokens"
    finish_reasons      = "gen_ai.response.finish_reasons"
    time_to_first_chunk = "gen_ai.response.time_to_first_chunk"
    # Azure Monitor's exporter drops error.type from a span; relay.code has the same value.
    code           = "relay.code"
    error          = "error.type"
    outcome        = "relay.outcome"
    status         = "relay.status"
    backend        = "relay.backend"
    attempts       = "relay.attempts"
    time_to_commit = "relay.time_to_commit"
    duration       = "relay.duration"
    largest_gap    = "relay.largest_gap"
    request_id     = "relay.request_id"
    caller         = "relay.caller"
    cost           = "relay.cost"
  }

  streams_query = templatefile("${path.module}/queries/streams.kql", merge(local.telemetry_attributes, {
    application_insights_id = lower(azurerm_application_insights.app.id)
  }))

  workbook_queries = [
    { file = "outcomes", title = "Streams by outcome", visualization = "timechart" },
    { file = "time_to_first_token", title = "Seconds to the first token (median, 95th percentile)", visualization = "timechart" },
    { file = "tokens", title = "Tokens", visualization = "timechart" },
    { file = "usage", title = "Use by caller and day", visualization = "table" },
    { file = "backends", title = "Deployments: load, rejections, throughput", visualization = "table" },
    { file = "failures", title = "Latest failures", visualization = "table" },
  ]
}

resource "azurerm_application_insights_workbook" "streams" {
  # A workbook's name must be a UUID; this one is the same in every plan.
  name                = uuidv5("url", "https://portal.azure.com/${data.azurerm_client_config.current.subscription_id}/${local.names.application_insights}/streams")
  display_name        = "Streams of ${local.names.function_app}"
  resource_group_name = local.resource_group_name
  location            = local.location
  tags                = local.tags
  category            = "workbook"
  # The provider requires lower case.
  source_id = lower(local.log_analytics_workspace_id)

  data_json = jsonencode({
    version = "Notebook/1.0"
    items = concat(
      [{
        type = 9
        name = "period"
        content = {
          version      = "KqlParameterItem/1.0"
          queryType    = 0
          resourceType = "microsoft.operationalinsights/workspaces"
          parameters = [{
            id           = uuidv5("url", "period")
            version      = "KqlParameterItem/1.0"
            name         = "Period"
            type         = 4
            isRequired   = true
            value        = { durationMs = 86400000 }
            typeSettings = { selectableValues = [for hours in [1, 4, 24, 168, 720] : { durationMs = hours * 3600000 }] }
          }]
        }
      }],
      [for query in local.workbook_queries : {
        type = 3
        name = query.file
        content = {
          version                  = "KqlItem/1.0"
          title                    = query.title
          query                    = "${local.streams_query}${file("${path.module}/queries/${query.file}.kql")}"
          size                     = 0
          queryType                = 0
          resourceType             = "microsoft.operationalinsights/workspaces"
          crossComponentResources  = [local.log_analytics_workspace_id]
          visualization            = query.visualization
          timeContextFromParameter = "Period"
        }
      }],
    )
    "$schema" = "https://github.com/Microsoft/Application-Insights-Workbooks/blob/master/schema/workbook.json"
  })
}
