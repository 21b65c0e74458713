# Computed values of the mocked provider: well-formed ids, so that an apply succeeds.

mock_data "azurerm_client_config" {
  defaults = {
    client_id       = "00000000-0000-0000-0000-000000000001"
    object_id       = "00000000-0000-0000-0000-000000000002"
    subscription_id = "00000000-0000-0000-0000-000000000003"
    tenant_id       = "00000000-0000-0000-0000-000000000004"
  }
}

mock_resource "azurerm_resource_group" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked"
  }
}

mock_resource "azurerm_user_assigned_identity" {
  defaults = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.ManagedIdentity/userAssignedIdentities/mocked"
    client_id    = "00000000-0000-0000-0000-000000000005"
    principal_id = "00000000-0000-0000-0000-000000000006"
    tenant_id    = "00000000-0000-0000-0000-000000000004"
  }
}

mock_resource "azurerm_role_assignment" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/providers/Microsoft.Authorization/roleAssignments/00000000-0000-0000-0000-000000000007"
  }
}

mock_resource "azurerm_storage_account" {
  defaults = {
    id                    = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Storage/storageAccounts/mocked"
    primary_blob_endpoint = "https://mocked.blob.core.windows.net/"
  }
}

mock_resource "azurerm_storage_container" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Storage/storageAccounts/mocked/blobServices/default/containers/code"
  }
}

mock_resource "azurerm_service_plan" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Web/serverFarms/mocked"
  }
}

mock_resource "azurerm_function_app_flex_consumption" {
  defaults = {
    id               = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Web/sites/mocked"
    default_hostname = "mocked.azurewebsites.net"
  }
}

mock_resource "azurerm_cognitive_account" {
  defaults = {
    id       = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.CognitiveServices/accounts/mocked"
    endpoint = "https://mocked.openai.azure.com/"
  }
}

mock_resource "azurerm_cognitive_deployment" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.CognitiveServices/accounts/mocked/deployments/mocked"
  }
}

mock_resource "azurerm_application_insights" {
  defaults = {
    id                = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Insights/components/Mocked"
    connection_string = "InstrumentationKey=00000000-0000-0000-0000-000000000008;IngestionEndpoint=https://mocked.in.applicationinsights.azure.com/"
  }
}

mock_resource "azurerm_application_insights_workbook" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Insights/workbooks/00000000-0000-0000-0000-000000000009"
  }
}

mock_resource "azurerm_log_analytics_workspace" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.OperationalInsights/workspaces/Mocked"
  }
}

mock_resource "azurerm_virtual_network" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Network/virtualNetworks/mocked"
  }
}

mock_resource "azurerm_subnet" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Network/virtualNetworks/mocked/subnets/mocked"
  }
}

mock_resource "azurerm_network_security_group" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Network/networkSecurityGroups/mocked"
  }
}

mock_resource "azurerm_monitor_action_group" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.Insights/actionGroups/mocked"
  }
}

mock_resource "azurerm_cognitive_account_rai_policy" {
  defaults = {
    id = "/subscriptions/00000000-0000-0000-0000-000000000003/resourceGroups/mocked/providers/Microsoft.CognitiveServices/accounts/mocked/raiPolicies/mocked"
  }
}
