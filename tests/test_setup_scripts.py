"""Tests of the shell scripts of infra/, with a fake az, gh and terraform."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

INFRA = Path(__file__).resolve().parent.parent / "infra"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="bash scripts")

# Writes each call to `calls`, one line of arguments. `known` has what exists: names of applications, credentials,
# roles, environments and variables. A call that creates one adds it.
FAKE = """#!/bin/bash
cd {folder}
line="${{0##*/}}"
for argument; do line+=$'\\t'${{argument//[$'\\n\\t']/ }}; done
printf '%s\\n' "$line" >> calls
known() {{ while read -r one; do [ "$one" = "$1" ] && return; done < known; return 1; }}
option() {{ local name=$1; shift; while [ $# -gt 0 ]; do [ "$1" = "$name" ] && {{ echo "$2"; return; }}; shift; done; }}
case "${{0##*/}} $*" in
"az account show --query id"*) echo sub;;
"az account show"*) echo tenant;;
"az ad app list"*) n=$(option --display-name "$@"); if known "app $n"; then echo "id-$n"; fi;;
"az ad app create"*) n=$(option --display-name "$@"); echo "app $n" >> known; echo "id-$n";;
"az ad app show"*) echo object;;
"az ad app federated-credential list"*) sed -n "s|^credential $(option --id "$@") ||p" known;;
"az ad app federated-credential create"*)
  n=$(option --parameters "$@"); n=${{n#*name\\": \\"}}
  echo "credential $(option --id "$@") ${{n%%\\"*}}" >> known;;
"az ad sp show"*"--query id"*) echo "principal-$(option --id "$@")";;
"az ad sp show"*) known "sp $(option --id "$@")" || exit 3;;
"az ad sp create"*) echo "sp $(option --id "$@")" >> known;;
"az role definition list"*) if known role; then echo definition; fi;;
"az role definition create"*) echo role >> known;;
"az storage account show"*) echo /state;;
"gh api repos/"*"/oidc/"*) cat prefix;;
"gh api repos/"*"/environments/"*) known "$2" || exit 1;;
"gh api --method PUT"*) echo "$4" >> known;;
"gh variable get"*) v=$(sed -n "s/^variable $3=//p" known); if [ -n "$v" ]; then echo "$v"; else exit 1; fi;;
"gh variable set"*) echo "variable $3=$(option --body "$@")" >> known;;
esac
"""


class Machine:
    """A folder with a fake az and a fake gh on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("az", "gh"):
            (folder / name).write_text(FAKE.format(folder=folder), encoding="utf-8")
            (folder / name).chmod(0o755)
        (folder / "known").touch()
        self.prefix("")

    def prefix(self, text: str) -> None:
        (self.folder / "prefix").write_text(text, encoding="utf-8")

    def run(self, script: str, *arguments: str) -> list[list[str]]:
        """The calls of one run of the script, which must succeed."""
        (self.folder / "calls").write_text("", encoding="utf-8")
        process = subprocess.run(
            ["bash", INFRA / script, *arguments],
            env={"PATH": f"{self.folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert process.returncode == 0, process.stderr
        text = (self.folder / "calls").read_text(encoding="utf-8")
        return [line.rstrip("\t").split("\t") for line in text.splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    return Machine(tmp_path)


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def selected(calls: list[list[str]], *words: str) -> list[list[str]]:
    return [call for call in calls if call[: len(words)] == list(words)]


def subjects(calls: list[list[str]], verb: str) -> dict[str, list[str]]:
    """The subjects of the federated credentials that were created or updated, by application."""
    found: dict[str, list[str]] = {}
    for call in selected(calls, "az", "ad", "app", "federated-credential", verb):
        parameters = json.loads(option(call, "--parameters"))
        assert parameters["issuer"] == "https://token.actions.githubusercontent.com"
        assert parameters["audiences"] == ["api://AzureADTokenExchange"]
        found.setdefault(option(call, "--id"), []).append(parameters["subject"])
    return found


@pytest.mark.parametrize(
    ("prefix", "expected"), [("repo:owner@12/name@34", "repo:owner@12/name@34"), ("", "repo:owner/name")]
)
def test_subjects_are_those_that_github_presents(machine: Machine, prefix: str, expected: str) -> None:
    """Repositories of 2026-07-15 and later have the ids of owner and repository in them (AADSTS700213)."""
    machine.prefix(prefix)
    assert subjects(machine.run("connect_github.sh", "owner/name"), "create") == {
        "id-owner/name deploy": [f"{expected}:environment:dev", f"{expected}:environment:prod"],
        "id-owner/name plan": [
            f"{expected}:{subject}" for subject in ("pull_request", "environment:dev-plan", "environment:prod-plan")
        ],
    }


def test_planner_can_only_read_and_deployer_assigns_few_roles(machine: Machine) -> None:
    calls = machine.run("connect_github.sh", "owner/name")
    roles = [
        (option(call, "--assignee-object-id"), option(call, "--role"), option(call, "--scope"))
        for call in selected(calls, "az", "role", "assignment", "create")
    ]
    deployer, planner = "principal-id-owner/name deploy", "principal-id-owner/name plan"
    assert roles == [
        (deployer, "Contributor", "/subscriptions/sub"),
        (deployer, "Role Based Access Control Administrator", "/subscriptions/sub"),
        (planner, "Terraform plan sub", "/subscriptions/sub"),
        (deployer, "Storage Blob Data Contributor", "/state"),
        (planner, "Storage Blob Data Reader", "/state"),
    ]
    (definition,) = selected(calls, "az", "role", "definition", "create")
    actions = json.loads(option(definition, "--role-definition"))["Actions"]
    assert actions == ["*/read", "Microsoft.Web/sites/config/list/action"]
    (conditional,) = [call for call in calls if "--condition" in call]
    ids = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", option(conditional, "--condition")))
    assert ids == {
        "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
        "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd",
        "3913510d-42f4-4e42-8a64-420c390055eb",
        "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
    }


def test_state_keeps_overwritten_and_deleted_versions_and_accepts_no_key(machine: Machine) -> None:
    calls = machine.run("connect_github.sh", "owner/name", "westeurope")
    (account,) = selected(calls, "az", "storage", "account", "create")
    assert option(account, "--allow-shared-key-access") == "false"
    assert option(account, "--allow-blob-public-access") == "false"
    assert option(account, "--location") == "westeurope"
    assert re.fullmatch(r"[a-z0-9]{3,24}", option(account, "--name"))
    (service,) = selected(calls, "az", "storage", "account", "blob-service-properties", "update")
    for enabled in ("--enable-versioning", "--enable-delete-retention", "--enable-container-delete-retention"):
        assert option(service, enabled) == "true"


def test_connecting_again_creates_nothing_twice(machine: Machine) -> None:
    first = machine.run("connect_github.sh", "owner/name")
    machine.prefix("repo:owner@12/name@34")
    second = machine.run("connect_github.sh", "owner/name")
    assert selected(second, "az", "ad", "app", "create") == []
    assert selected(second, "az", "ad", "sp", "create") == []
    assert subjects(second, "create") == {}
    assert {subject.split(":")[1] for of_one in subjects(second, "update").values() for subject in of_one} == {
        "owner@12/name@34"
    }
    assert len(selected(second, "az", "role", "definition", "update")) == 1
    assert selected(second, "gh", "api", "--method", "PUT") == [], "it would remove the environment's reviewers"
    names = [
        [option(call, "--name") for call in selected(calls, "az", "storage", "account", "create")]
        for calls in (first, second)
    ]
    assert names[0] == names[1]


def test_workflows_read_the_variables_that_the_script_sets(machine: Machine) -> None:
    calls = machine.run("connect_github.sh", "owner/name")
    variables = {call[3] for call in selected(calls, "gh", "variable", "set")}
    workflows = "".join(
        path.read_text(encoding="utf-8") for path in (INFRA.parent / ".github" / "workflows").glob("*.yml")
    )
    assert set(re.findall(r"\bvars\.(\w+)", workflows)) == variables
    environments = {call[-2].rpartition("/")[2] for call in selected(calls, "gh", "api", "--method", "PUT")}
    assert environments == {"dev", "prod", "dev-plan", "prod-plan"}


def test_sign_in_makes_tokens_of_version_2_which_the_azure_cli_may_request(machine: Machine) -> None:
    calls = machine.run("register_sign_in.sh", "https://app.example.com/", "my relay")
    (create,) = selected(calls, "az", "ad", "app", "create")
    (update,) = selected(calls, "az", "ad", "app", "update")
    for call in (create, update):
        assert option(call, "--requested-access-token-version") == "2"
    assert option(update, "--web-redirect-uris") == "https://app.example.com/.auth/login/aad/callback"
    assert option(update, "--identifier-uris") == "api://id-my relay"
    scopes, authorized = (json.loads(option(call, "--body"))["api"] for call in selected(calls, "az", "rest"))
    (scope,) = scopes["oauth2PermissionScopes"]
    assert scope["isEnabled"] is True
    assert authorized["preAuthorizedApplications"] == [
        {"appId": "04b07795-8ddb-461a-bbee-02f9e1bf7b46", "delegatedPermissionIds": [scope["id"]]}
    ]
    again = machine.run("register_sign_in.sh", "https://app.example.com", "my relay")
    assert selected(again, "az", "ad", "app", "create") == selected(again, "az", "ad", "sp", "create") == []
    assert selected(again, "az", "rest") == selected(calls, "az", "rest")


TERRAFORM = """#!/bin/bash
cd {folder}
case "$*" in
"plan "*) echo "$*" >> arguments; exit $(cat status);;
"show -json plan.tfplan") cat plan.json;;
"show -no-color plan.tfplan") echo "Plan: 1 to add";;
esac
"""


def plan(machine: Machine, changes: list[dict[str, object]], status: int = 0) -> tuple[int, dict[str, str], str]:
    """Exit code, outputs and summary of infra/plan.sh when Terraform plans these changes."""
    folder = machine.folder
    (folder / "terraform").write_text(TERRAFORM.format(folder=folder), encoding="utf-8")
    (folder / "terraform").chmod(0o755)
    (folder / "status").write_text(str(status), encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps({"resource_changes": changes}), encoding="utf-8")
    for name in ("output", "summary"):
        (folder / name).write_text("", encoding="utf-8")
    process = subprocess.run(
        ["bash", INFRA / "plan.sh", "prod", "-lock=false", "-detailed-exitcode"],
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = (folder / "output").read_text(encoding="utf-8").splitlines()
    outputs = {name: value for name, _, value in (line.partition("=") for line in lines)}
    return process.returncode, outputs, (folder / "summary").read_text(encoding="utf-8")


def change(address: str, action: str, **after: object) -> dict[str, object]:
    return {"address": address, "change": {"actions": [action], "after": after}}


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed (GitHub's runners have it)")
def test_digest_of_a_plan_is_of_its_changes(machine: Machine) -> None:
    first = [change("a", "update", name="x"), change("b", "no-op", name="y")]
    status, outputs, summary = plan(machine, first)
    assert status == 0
    assert "Plan: 1 to add" in summary
    assert "-var-file=env/prod.tfvars -lock=false -detailed-exitcode" in (machine.folder / "arguments").read_text()
    assert plan(machine, [change("b", "no-op", name="z"), *first[:1]])[1] == outputs
    for other in ([change("a", "update", name="z")], [change("a", "delete")], [change("c", "update", name="x")], []):
        assert plan(machine, other)[1]["digest"] != outputs["digest"]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed (GitHub's runners have it)")
def test_plan_reports_drift_and_failure(machine: Machine) -> None:
    status, outputs, _ = plan(machine, [change("a", "update")], status=2)
    assert (status, len(outputs["digest"])) == (2, 64)
    assert plan(machine, [], status=1)[:2] == (1, {})
