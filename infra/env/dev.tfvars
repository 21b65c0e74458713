# Development: small, without always-ready instances.
#   terraform apply -var-file env/dev.tfvars

environment            = "dev"
maximum_instance_count = 40
daily_log_cap_in_gb    = 0.5
