# Alert rules and their recipients. Without alert_emails no rules are created.

locals {
  # Each query returns a row if and only if the alert should fire. The window is 15 minutes, so that one slow minute of
  # the model service does not fire an alert.
  alerts = {
    failing = {
      severity    = 1
      description = "More than ${var.alert_thresholds.failed_percent} % of the streams failed in the last 15 minutes."
      query       = "alert_failing"
    }
    silent = {
      severity    = 0
      description = "There were requests in the last 15 minutes, but no stream was completed."
      query       = "alert_silent"
    }
    rate-limited = {
      severity    = 2
      description = "More than ${var.alert_thresholds.rate_limited_percent} % of the streams were rejected with 429 in the last 15 minutes: raise the deployments' capacity, or add an instance."
      query       = "alert_rate_limited"
    }
  }
}

resource "azurerm_monitor_action_group" "main" {
  count = length(var.alert_emails) > 0 ? 1 : 0

  name                = local.names.action_group
  resource_group_name = local.resource_group_name
  short_name          = substr(var.project, 0, 12)
  tags                = local.tags

  dynamic "email_receiver" {
    for_each = var.alert_emails

    content {
      name                    = "email-${email_receiver.key + 1}"
      email_address           = email_receiver.value
      use_common_alert_schema = true
    }
  }
}

resource "azurerm_monitor_scheduled_query_rules_alert_v2" "streams" {
  for_each = length(var.alert_emails) > 0 ? local.alerts : {}

  name                 = "${local.names.alert}-${each.key}"
  display_name         = "${local.names.function_app}: ${each.key}"
  description          = each.value.description
  resource_group_name  = local.resource_group_name
  location             = local.location
  tags                 = local.tags
  severity             = each.value.severity
  scopes               = [local.log_analytics_workspace_id]
  evaluation_frequency = "PT5M"
  window_duration      = "PT15M"

  # Resolves the alert automatically once the condition no longer holds.
  auto_mitigation_enabled = true
  # The tables' columns do not exist until the first telemetry arrives, after this rule is created.
  skip_query_validation = true

  criteria {
    query = "${local.streams_query}${templatefile("${path.module}/queries/${each.value.query}.kql", var.alert_thresholds)}"

    time_aggregation_method = "Count"
    operator                = "GreaterThan"
    threshold               = 0

    failing_periods {
      minimum_failing_periods_to_trigger_alert = 1
      number_of_evaluation_periods             = 1
    }
  }

  action {
    action_groups = [azurerm_monitor_action_group.main[0].id]
  }
}
