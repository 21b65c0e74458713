# A budget tells; it stops nothing. What stops is each deployment's capacity, maximum_instance_count and the log cap.

resource "azurerm_consumption_budget_resource_group" "main" {
  count = var.monthly_budget == null ? 0 : 1

  name              = local.names.budget
  resource_group_id = local.resource_group_id
  amount            = var.monthly_budget
  time_grain        = "Monthly"

  time_period {
    # The first of the month in which the budget is made.
    start_date = formatdate("YYYY-MM-'01T00:00:00Z'", plantimestamp())
  }

  notification {
    operator       = "GreaterThanOrEqualTo"
    threshold      = 80
    threshold_type = "Actual"
    contact_emails = var.alert_emails
    contact_roles  = ["Owner"]
  }

  notification {
    operator       = "GreaterThanOrEqualTo"
    threshold      = 100
    threshold_type = "Forecasted"
    contact_emails = var.alert_emails
    contact_roles  = ["Owner"]
  }

  lifecycle {
    # Next month's plan would otherwise make a new budget.
    ignore_changes = [time_period]
  }
}
