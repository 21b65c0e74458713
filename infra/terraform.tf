# Versions, and how Terraform speaks to Azure: with Entra tokens only.

terraform {
  required_version = ">= 1.11"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 5.2.0"
    }
  }
}

provider "azurerm" {
  # Storage's own keys are off, so whatever the provider asks of storage's data plane it asks with an Entra token.
  storage_use_azuread = true

  # The provider registers nothing by itself (5.x). The names are case-sensitive, microsoft.insights included.
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
      # A deleted account keeps its name and its quota for 48 hours unless it is purged.
      purge_soft_delete_on_destroy = true
    }

    log_analytics_workspace {
      # Otherwise a destroyed workspace lingers for 14 days and a new one of that name brings its content back.
      permanently_delete_on_destroy = true
    }

    resource_group {
      # Azure adds an action group and a rule ("Smart Detection", "Failure Anomalies") beside Application Insights;
      # Terraform doesn't know them, and they must not keep `destroy` from ending.
      prevent_deletion_if_contains_resources = false
    }
  }
}

data "azurerm_client_config" "current" {}
