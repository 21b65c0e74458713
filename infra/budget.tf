# A budget only notifies; it stops nothing. Costs are limited by each deployment's capacity, maximum_instance_count and
# daily_log_cap_in_gb.

resource "azurerm_consumption_budget_resource_group" "main" {
  count = var.monthly_budget == null ? 0 : 1

  name              = local.names.budget
  resource_group_id = local.resource_group_id
  amount            = var.monthly_budget
  time_grain        = "Monthly"

  time_period {
    # The first day of the month in which the budget is created.
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
    # Otherwise next month's plan would replace the budget.
    ignore_changes = [time_period]
  }
}
