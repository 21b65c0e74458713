#!/usr/bin/env bash
# Registers the app with Entra ID, for entra_sign_in; can be repeated. Makes tokens of version 2, whose issuer the app
# expects, and lets the Azure CLI request them (token_command). Requires az, signed in, and permission to register
# applications.
#
#   bash infra/register_sign_in.sh "$(terraform -chdir=infra output -raw url)" [NAME]
set -euo pipefail
url=${1:?"the app's address is missing: bash infra/register_sign_in.sh https://NAME.azurewebsites.net"}
name=${2:-relay}
callback=${url%/}/.auth/login/aad/callback
# The id of the Azure CLI in every tenant, and of the scope in this registration: the same in every run.
azure_cli=04b07795-8ddb-461a-bbee-02f9e1bf7b46
scope=5e9e7e2c-52a4-4a37-9c1d-8f2f5f3d6a10

id=$(az ad app list --display-name "$name" --query "[0].appId" --output tsv)
[ -n "$id" ] || id=$(az ad app create --display-name "$name" --requested-access-token-version 2 --query appId --output tsv)
az ad app update --id "$id" --identifier-uris "api://$id" --requested-access-token-version 2 \
	--enable-id-token-issuance true --web-redirect-uris "$callback" --output none
az ad sp show --id "$id" --output none 2>/dev/null || az ad sp create --id "$id" --output none

# The scope that callers request a token for; then, in a request of its own, the Azure CLI's right to request it without
# a consent, which can only name a scope that exists.
graph=https://graph.microsoft.com/v1.0/applications/$(az ad app show --id "$id" --query id --output tsv)
patch() { az rest --method patch --url "$graph" --body "$1" --output none; }
patch "{\"api\": {\"oauth2PermissionScopes\": [{
	\"id\": \"$scope\", \"value\": \"user_impersonation\", \"type\": \"User\", \"isEnabled\": true,
	\"adminConsentDisplayName\": \"Call $name\", \"adminConsentDescription\": \"Call $name as the signed-in user.\",
	\"userConsentDisplayName\": \"Call $name\", \"userConsentDescription\": \"Call $name as you.\"}]}}"
patch "{\"api\": {\"preAuthorizedApplications\": [{
	\"appId\": \"$azure_cli\", \"delegatedPermissionIds\": [\"$scope\"]}]}}"

echo "In infra/terraform.tfvars: entra_sign_in = { client_id = \"$id\" }"
