#!/usr/bin/env bash
# Setup for a GitHub repository, which can be repeated: creates two identities for its workflows, without a secret (one
# that deploys, one that can only read and plans), and a storage account for the Terraform state, without a key. Requires
# az and gh, both signed in, and permission to register applications and, on the subscription, to assign and define
# roles (Owner).
#
#   bash infra/connect_github.sh OWNER/NAME [LOCATION]
set -euo pipefail
repository=${1:?"the repository is missing: bash infra/connect_github.sh OWNER/NAME"}
location=${2:-eastus2}
subscription=$(az account show --query id --output tsv)
scope=/subscriptions/$subscription

# How GitHub begins the subject of this repository's tokens: with the ids of owner and repository for a repository that
# was created, renamed or transferred since 2026-07-15 (repo:OWNER@ID/NAME@ID), otherwise without. Entra compares the
# whole text (AADSTS700213).
prefix=$(gh api "repos/$repository/actions/oidc/customization/sub" --jq '.sub_claim_prefix // ""')
prefix=${prefix:-repo:$repository}

# identity NAME SUBJECT...: prints the client id of the application NAME, whose tokens workflows with these subjects get.
identity() {
	local name=$1 application credentials subject
	shift
	application=$(az ad app list --display-name "$name" --query "[0].appId" --output tsv)
	[ -n "$application" ] || application=$(az ad app create --display-name "$name" --query appId --output tsv)
	az ad sp show --id "$application" --output none 2>/dev/null || az ad sp create --id "$application" --output none
	credentials=$(az ad app federated-credential list --id "$application" --query "[].name" --output tsv)
	for subject; do
		local verb=create arguments=()
		if grep --quiet --line-regexp --fixed-strings "${subject//:/-}" <<<"$credentials"; then
			verb=update arguments=(--federated-credential-id "${subject//:/-}")
		fi
		# The long form of an array that may be empty, for the bash of macOS.
		az ad app federated-credential "$verb" --id "$application" --output none \
			${arguments[@]+"${arguments[@]}"} --parameters "{
			\"name\": \"${subject//:/-}\", \"issuer\": \"https://token.actions.githubusercontent.com\",
			\"subject\": \"$prefix:$subject\", \"audiences\": [\"api://AzureADTokenExchange\"]}"
	done
	echo "$application"
}

# assign APPLICATION ARGUMENT...: assigns a role to the application, unless it has it.
assign() {
	local principal
	# The object id, since a new application's own id is not known everywhere for some minutes.
	principal=$(az ad sp show --id "$1" --query id --output tsv)
	shift
	az role assignment create --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal \
		--output none "$@"
}

# The identity that deploys: in the two environments only, whose reviewers approve each run.
deployer=$(identity "$repository deploy" environment:dev environment:prod)
# The identity that plans, on pull requests, before a deployment and every night.
planner=$(identity "$repository plan" pull_request environment:dev-plan environment:prod-plan)

# The deployer creates resources, and assigns these roles only: Storage Blob Data Owner, Cognitive Services OpenAI User,
# Monitoring Metrics Publisher, and for the store of limits Storage Table Data Contributor.
roles=b7e6dc6d-f1e8-4753-8033-0f276bb0955b,5e0bd9bd-7b93-4f28-af87-19fc36ad61bd,3913510d-42f4-4e42-8a64-420c390055eb,0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3
assign "$deployer" --role Contributor --scope "$scope"
assign "$deployer" --role "Role Based Access Control Administrator" --scope "$scope" \
	--condition-version 2.0 --condition "(
		(!(ActionMatches{'Microsoft.Authorization/roleAssignments/write'}) OR
		 @Request[Microsoft.Authorization/roleAssignments:RoleDefinitionId] ForAnyOfAnyValues:GuidEquals {$roles}) AND
		(!(ActionMatches{'Microsoft.Authorization/roleAssignments/delete'}) OR
		 @Resource[Microsoft.Authorization/roleAssignments:RoleDefinitionId] ForAnyOfAnyValues:GuidEquals {$roles}))"

# The planner reads. A plan also reads the app's settings, which is an action in Azure and not in the role Reader; they
# contain no secret. It can't read function keys.
role="Terraform plan $subscription"
definition="{
	\"Name\": \"$role\", \"Description\": \"Reads what a Terraform plan compares; changes nothing.\",
	\"Actions\": [\"*/read\", \"Microsoft.Web/sites/config/list/action\"], \"AssignableScopes\": [\"$scope\"]}"
if [ -z "$(az role definition list --custom-role-only true --name "$role" --scope "$scope" --query "[0].id" --output tsv)" ]; then
	az role definition create --role-definition "$definition" --output none
else
	az role definition update --role-definition "$definition" --output none
fi
assign "$planner" --role "$role" --scope "$scope"

# The storage account for the Terraform state: the one that the workflows use already, or one whose name is the same in
# every run. It keeps overwritten and deleted states.
group=$(gh variable get STATE_RESOURCE_GROUP --repo "$repository" 2>/dev/null || echo rg-terraform-state)
account=$(gh variable get STATE_STORAGE_ACCOUNT --repo "$repository" 2>/dev/null ||
	echo "sttf$(printf %s "$subscription/$repository" | git hash-object --stdin | cut -c1-16)")
az group create --name "$group" --location "$location" --output none
az storage account create --name "$account" --resource-group "$group" --location "$location" --sku Standard_ZRS \
	--allow-shared-key-access false --allow-blob-public-access false --min-tls-version TLS1_2 --output none
az storage account blob-service-properties update --account-name "$account" --resource-group "$group" --output none \
	--enable-versioning true --enable-delete-retention true --delete-retention-days 30 \
	--enable-container-delete-retention true --container-delete-retention-days 30
az storage container-rm create --name tfstate --storage-account "$account" --resource-group "$group" --output none
state=$(az storage account show --name "$account" --resource-group "$group" --query id --output tsv)
assign "$deployer" --role "Storage Blob Data Contributor" --scope "$state"
assign "$planner" --role "Storage Blob Data Reader" --scope "$state"

# The variables that the workflows read; none is a secret.
set_variable() { gh variable set "$1" --repo "$repository" --body "$2"; }
set_variable AZURE_CLIENT_ID "$deployer"
set_variable AZURE_PLAN_CLIENT_ID "$planner"
set_variable AZURE_TENANT_ID "$(az account show --query tenantId --output tsv)"
set_variable AZURE_SUBSCRIPTION_ID "$subscription"
set_variable STATE_RESOURCE_GROUP "$group"
set_variable STATE_STORAGE_ACCOUNT "$account"
set_variable STATE_CONTAINER tfstate
for environment in dev prod dev-plan prod-plan; do
	# Only if it is not there: writing it again would remove its reviewers.
	gh api "repos/$repository/environments/$environment" --silent 2>/dev/null ||
		gh api --method PUT "repos/$repository/environments/$environment" --silent
done
echo "Now name the required reviewers of the environments dev and prod in the settings of $repository."
