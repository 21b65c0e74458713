#!/usr/bin/env bash
# One-time setup for a GitHub repository: creates an identity for its workflows, without a secret, and a storage account
# for the Terraform state, without a key. Requires az and gh, both signed in, and permission to register applications
# and to assign roles on the subscription.
#
#   bash infra/connect_github.sh OWNER/NAME [LOCATION]
set -euo pipefail
repository=${1:?"the repository is missing: bash infra/connect_github.sh OWNER/NAME"}
location=${2:-eastus2}
subscription=$(az account show --query id --output tsv)
application=$(az ad app create --display-name "$repository deploy" --query appId --output tsv)
# The object id, since a new application's own id is not known everywhere for some minutes.
principal=$(az ad sp create --id "$application" --query id --output tsv)

# The workflows that may sign in as this identity: those of pull requests and of the two environments.
for subject in pull_request environment:dev environment:prod; do
	az ad app federated-credential create --id "$application" --output none --parameters "{
		\"name\": \"${subject//:/-}\", \"issuer\": \"https://token.actions.githubusercontent.com\",
		\"subject\": \"repo:$repository:$subject\", \"audiences\": [\"api://AzureADTokenExchange\"]}"
done

# Its permissions: to create resources, and to assign these three roles only: Storage Blob Data Owner, Cognitive
# Services OpenAI User, Monitoring Metrics Publisher.
roles=b7e6dc6d-f1e8-4753-8033-0f276bb0955b,5e0bd9bd-7b93-4f28-af87-19fc36ad61bd,3913510d-42f4-4e42-8a64-420c390055eb
assign() {
	az role assignment create --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal \
		--output none "$@"
}
assign --role Contributor --scope "/subscriptions/$subscription"
assign --role "Role Based Access Control Administrator" --scope "/subscriptions/$subscription" \
	--condition-version 2.0 --condition "(
		(!(ActionMatches{'Microsoft.Authorization/roleAssignments/write'}) OR
		 @Request[Microsoft.Authorization/roleAssignments:RoleDefinitionId] ForAnyOfAnyValues:GuidEquals {$roles}) AND
		(!(ActionMatches{'Microsoft.Authorization/roleAssignments/delete'}) OR
		 @Resource[Microsoft.Authorization/roleAssignments:RoleDefinitionId] ForAnyOfAnyValues:GuidEquals {$roles}))"

# The storage account for the Terraform state.
account=stterraform$RANDOM$RANDOM
az group create --name rg-terraform-state --location "$location" --output none
az storage account create --name "$account" --resource-group rg-terraform-state --sku Standard_ZRS --output none \
	--allow-shared-key-access false --allow-blob-public-access false --min-tls-version TLS1_2
az storage container-rm create --name tfstate --storage-account "$account" --resource-group rg-terraform-state --output none
assign --role "Storage Blob Data Contributor" \
	--scope "$(az storage account show --name "$account" --resource-group rg-terraform-state --query id --output tsv)"

# The variables that the workflows read; none is a secret.
set_variable() { gh variable set "$1" --repo "$repository" --body "$2"; }
set_variable AZURE_CLIENT_ID "$application"
set_variable AZURE_TENANT_ID "$(az account show --query tenantId --output tsv)"
set_variable AZURE_SUBSCRIPTION_ID "$subscription"
set_variable STATE_RESOURCE_GROUP rg-terraform-state
set_variable STATE_STORAGE_ACCOUNT "$account"
set_variable STATE_CONTAINER tfstate
echo "Now create the environments dev and prod in the settings of $repository, with their required reviewers."
