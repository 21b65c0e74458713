# Required versions, and the provider's configuration: it authenticates with Entra tokens only.

terraform {
  required_version = ">= 1.11"

  required_providers {
    azurerm = {
      source = "hashicorp/azurerm"
      # Every 5.x from the version that this configuration was applied with. docs/deploy.md says what a newer one may change.
      version = ">= 5.2.0, < 6.0.0"
    }
  }
}

provider "azurerm" {
  # Storage account keys are disabled, so the provider accesses storage's data plane with an Entra token.
  storage_use_azuread = true

  # Provider 5.x registers nothing by default. The names are case-sensitive, including microsoft.insights.
  resource_provider_registrations = "none"
  resource_providers_to_register = var.register_resource_providers ? concat(
    [
      "Microsoft.App",
      "Microsoft.CognitiveServices",
      "Microsoft.ManagedIdentity",
      "Microsoft.OperationalInsights",
      "Microsoft.Storage",
      "Microsoft.Web",
      "microsoft.insights",
    ],
    local.uses_network ? ["Microsoft.Network"] : [],
  ) : []

  features {
    cognitive_account {
      # A deleted account keeps its name and quota for 48 hours unless it is purged.
      purge_soft_delete_on_destroy = true
    }

    log_analytics_workspace {
      # Otherwise a destroyed workspace is kept for 14 days, and a new one of that name restores its content.
      permanently_delete_on_destroy = true
    }

    resource_group {
      # Azure adds an action group and a rule ("Smart Detection", "Failure Anomalies") with Application Insights.
      # Terraform does not manage them, and they must not make `destroy` fail.
      prevent_deletion_if_contains_resources = false
    }
  }
}

data "azurerm_client_config" "current" {}
