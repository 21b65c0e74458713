#!/usr/bin/env bash
# Plans for the workflows: writes plan.tfplan, shows the plan in the run's summary, and returns a digest of its changes,
# by which a later plan is seen to be the same. Runs in infra/, after terraform init.
#
#   bash plan.sh dev|prod [ARGUMENT of terraform plan ...]
#
# With -detailed-exitcode it ends with 2 if there are changes.
set -euo pipefail
target=$1
shift
status=0
terraform plan -out=plan.tfplan -var-file="env/$target.tfvars" "$@" || status=$?
[ "$status" = 0 ] || [ "$status" = 2 ] || exit "$status"

# What is done to which resource and with what values; not the order, the time, or what stays as it is.
changes='[.resource_changes[]? | select(.change.actions != ["no-op"]) | {address, actions: .change.actions, after: .change.after}] | sort_by(.address)'
digest=$(terraform show -json plan.tfplan | jq --sort-keys --compact-output "$changes" | sha256sum | cut -d " " -f 1)
echo "digest=$digest" >>"${GITHUB_OUTPUT:-/dev/stdout}"
{
	echo "### Plan for $target ($digest)"
	echo '```'
	# A summary holds 1 MiB.
	terraform show -no-color plan.tfplan | head -c 900000
	echo '```'
} >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
exit "$status"
