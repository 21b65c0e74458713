# Production: one always-ready instance, longer log retention, one model in two regions. Name the alerts' recipients:
#   terraform apply -var-file env/prod.tfvars -var 'alert_emails=["oncall@example.com"]' -var monthly_budget=500

environment            = "prod"
always_ready_instances = 1
log_retention_in_days  = 90
daily_log_cap_in_gb    = 5

open_ai_instances = [
  { name = "primary", models = [{ name = "gpt-5.4-mini", version = "2026-03-17", capacity = 200 }] },
  { name = "secondary", region = "swedencentral", models = [{ name = "gpt-5.4-mini", version = "2026-03-17", capacity = 200 }] },
]
