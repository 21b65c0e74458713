"""The deployment, as far as it can be held without Azure: the provider's schema, the settings, the package, the guards.

`terraform validate` and `terraform test` run where the provider can be had, checkov where it is installed.
"""

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2
import pytest

from infra import publish
from relay.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
TERRAFORM_FILES = sorted(INFRA.glob("*.tf"))
TEST_FILES = sorted((INFRA / "tests").glob("*.tftest.hcl"))
SCHEMA = json.loads(Path(__file__).with_name("azurerm-schema-5.2.0.json").read_text(encoding="utf-8"))

# What Terraform lets stand in any resource beside the provider's own attributes.
META_ARGUMENTS = {"count", "for_each", "depends_on", "provider", "lifecycle", "provisioner", "connection"}


def parsed(path: Path) -> dict[str, Any]:
    """The file's blocks; names lose the quotes that the parser keeps, strings keep theirs."""
    return _unquoted(hcl2.loads(path.read_text(encoding="utf-8")))


def _unquoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name.strip('"'): _unquoted(inner)
            for name, inner in value.items()
            if name not in ("__is_block__", "__comments__", "__inline_comments__")
        }
    if isinstance(value, list):
        return [_unquoted(inner) for inner in value]
    return value


def labelled(blocks: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Blocks with two labels, as resources and data sources have: kind, name, body."""
    for block in blocks:
        for kind, named in block.items():
            for name, body in named.items():
                yield kind, name, body


CONFIGURATION = {path: parsed(path) for path in TERRAFORM_FILES}
RESOURCES = {
    (kind, name): body
    for content in CONFIGURATION.values()
    for kind, name, body in labelled(content.get("resource", []))
}
VARIABLES = {
    name: body
    for content in CONFIGURATION.values()
    for block in content.get("variable", [])
    for name, body in block.items()
}


# ---- The provider's schema ---------------------------------------------------------------------------------------


@dataclass
class SchemaCheck:
    """Holds one block to the provider's schema, and gathers every complaint."""

    complaints: list[str]

    def block(
        self, body: dict[str, Any], schema: dict[str, Any], where: str, meta: frozenset[str] = frozenset()
    ) -> None:
        attributes: dict[str, str] = schema["attributes"]
        blocks: dict[str, Any] = schema.get("blocks", {})
        counts: dict[str, tuple[int, bool]] = {}
        for name, value in body.items():
            if name in meta:
                continue
            if name == "dynamic":
                for dynamic in value:
                    for kind, inner in dynamic.items():
                        self._dynamic(kind, inner, blocks, where)
                        counts[kind] = (counts.get(kind, (0, False))[0], True)
            elif name in attributes:
                self._attribute(name, value, attributes[name], where)
            elif name in blocks:
                if not isinstance(value, list):
                    self.complaints.append(f"{where}.{name} is a block, not an attribute")
                    continue
                counts[name] = (len(value), counts.get(name, (0, False))[1])
                for inner in value:
                    self.block(inner, blocks[name][2], f"{where}.{name}")
            else:
                self.complaints.append(f"{where}.{name} does not exist")
        for name, flags in attributes.items():
            if "r" in flags and name not in body:
                self.complaints.append(f"{where}.{name} is required")
        for name, (least, most, _) in blocks.items():
            number, dynamic = counts.get(name, (0, False))
            if number < least and not dynamic:
                self.complaints.append(f"{where}.{name} is required")
            if most and number > most:
                self.complaints.append(f"{where}.{name} may stand there {most} times, not {number}")

    def _dynamic(self, kind: str, body: dict[str, Any], blocks: dict[str, Any], where: str) -> None:
        if kind not in blocks:
            self.complaints.append(f"{where}.{kind} does not exist")
            return
        if "for_each" not in body or len(body.get("content", [])) != 1:
            self.complaints.append(f"{where}.{kind} needs for_each and one content")
            return
        self.block(body["content"][0], blocks[kind][2], f"{where}.{kind}")

    def _attribute(self, name: str, value: Any, flags: str, where: str) -> None:
        if "r" not in flags and "o" not in flags:
            self.complaints.append(f"{where}.{name} can only be read")
        if isinstance(value, list) and any(isinstance(inner, dict) and "__is_block__" in inner for inner in value):
            self.complaints.append(f"{where}.{name} is an attribute, not a block")


def complaints_of(content: dict[str, Any]) -> list[str]:
    check = SchemaCheck([])
    for section, schemas in (("resource", SCHEMA["resources"]), ("data", SCHEMA["data"])):
        for kind, name, body in labelled(content.get(section, [])):
            if kind == "terraform_data":
                continue
            if kind not in schemas:
                check.complaints.append(f"{kind} does not exist")
                continue
            check.block(body, schemas[kind], f"{kind}.{name}", frozenset(META_ARGUMENTS))
            for lifecycle in body.get("lifecycle", []):
                for ignored in lifecycle.get("ignore_changes", []):
                    attribute = re.split(r"[\[.]", str(ignored).removeprefix("${").removesuffix("}"))[0]
                    if attribute not in schemas[kind]["attributes"] and attribute not in schemas[kind].get(
                        "blocks", {}
                    ):
                        check.complaints.append(f"{kind}.{name} ignores {attribute}, which does not exist")
    for provider in content.get("provider", []):
        check.block(provider["azurerm"], SCHEMA["provider"], "provider")
    return check.complaints


@pytest.mark.parametrize("path", TERRAFORM_FILES, ids=lambda path: path.name)
def test_every_argument_is_in_the_providers_schema(path: Path) -> None:
    assert complaints_of(CONFIGURATION[path]) == []


REFERENCE = re.compile(r"(?<![\w.\"])(data\.)?(azurerm_\w+)\.(\w+)(?:\[(?:[^\[\]]|\[[^\]]*\])*\])?(?:\.(\w+))?")


@pytest.mark.parametrize("path", [*TERRAFORM_FILES, *TEST_FILES], ids=lambda path: path.name)
def test_every_reference_leads_somewhere(path: Path) -> None:
    text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8"))
    wrong = []
    for data, kind, name, attribute in REFERENCE.findall(text):
        if data:
            known = (kind, name) == ("azurerm_client_config", "current")
            schema = SCHEMA["data"].get(kind)
        else:
            known = (kind, name) in RESOURCES
            schema = SCHEMA["resources"].get(kind)
        if not known or schema is None:
            wrong.append(f"{kind}.{name} is not declared")
        elif attribute and attribute not in schema["attributes"] and attribute not in schema.get("blocks", {}):
            wrong.append(f"{kind}.{name} has no {attribute}")
    assert wrong == []


def test_the_mocks_answer_only_what_azure_answers() -> None:
    wrong = []
    for path in sorted((INFRA / "tests" / "mocks").glob("*.tfmock.hcl")):
        content = parsed(path)
        for section, schemas in (("mock_resource", SCHEMA["resources"]), ("mock_data", SCHEMA["data"])):
            for block in content.get(section, []):
                for kind, body in block.items():
                    known = schemas.get(kind, {"attributes": {}})["attributes"]
                    wrong += [f"{kind}.{name}" for name in body["defaults"] if "c" not in known.get(name, "")]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "x"', "azurerm_resource_group.x.location is required"),
        ('name = "x"\nlocation = "x"\nplace = "x"', "azurerm_resource_group.x.place does not exist"),
        ('name = "x"\nlocation = "x"\nplace {}', "azurerm_resource_group.x.place does not exist"),
        (
            'name = "x"\nlocation = "x"\nlifecycle {\n ignore_changes = [place]\n}',
            "azurerm_resource_group.x ignores place, which does not exist",
        ),
        (
            'name = "x"\nlocation = "x"\ndynamic "place" {\n for_each = []\n content {}\n}',
            "azurerm_resource_group.x.place does not exist",
        ),
    ],
)
def test_the_schema_check_finds(text: str, complaint: str) -> None:
    content = _unquoted(hcl2.loads(f'resource "azurerm_resource_group" "x" {{\n{text}\n}}\n'))
    assert complaints_of(content) == [complaint]


def test_the_schema_check_finds_what_is_nested_or_only_read() -> None:
    text = """
resource "azurerm_user_assigned_identity" "x" {
  name                = "x"
  location            = "x"
  resource_group_name = "x"
  principal_id        = "x"
}

resource "azurerm_cognitive_deployment" "x" {
  name                 = "x"
  cognitive_account_id = "x"

  model {
    format = "OpenAI"
  }

  model {
    format = "OpenAI"
    name   = "x"
  }
}
"""
    assert complaints_of(_unquoted(hcl2.loads(text))) == [
        "azurerm_user_assigned_identity.x.principal_id can only be read",
        "azurerm_cognitive_deployment.x.model.name is required",
        "azurerm_cognitive_deployment.x.model may stand there 1 times, not 2",
        "azurerm_cognitive_deployment.x.sku is required",
    ]


# ---- The guards, where no provider can run `terraform test` ----------------------------------------------------------

APP = ("azurerm_function_app_flex_consumption", "app")
STORAGE = ("azurerm_storage_account", "app")
ACCOUNT = ("azurerm_cognitive_account", "openai")
IDENTITY = "${azurerm_user_assigned_identity.app.id}"


@pytest.mark.parametrize(
    ("resource", "path", "value"),
    [
        (ACCOUNT, "local_auth_enabled", False),
        (ACCOUNT, "kind", '"OpenAI"'),
        (ACCOUNT, "custom_subdomain_name", "${each.value.subdomain}"),
        (ACCOUNT, "public_network_access_enabled", "${var.private_endpoints == null}"),
        (ACCOUNT, "dynamic.0.network_acls.content.0.default_action", '"Deny"'),
        (ACCOUNT, "dynamic.0.network_acls.content.0.bypass", '"None"'),
        (STORAGE, "shared_access_key_enabled", False),
        (STORAGE, "allow_nested_items_to_be_public", False),
        (STORAGE, "cross_tenant_replication_enabled", False),
        (STORAGE, "local_user_enabled", False),
        (STORAGE, "https_traffic_only_enabled", True),
        (STORAGE, "min_tls_version", '"TLS1_2"'),
        (("azurerm_storage_container", "code"), "container_access_type", '"private"'),
        (APP, "https_only", True),
        (APP, "webdeploy_publish_basic_authentication_enabled", False),
        (APP, "http_concurrency", "${var.http_concurrency}"),
        (APP, "storage_authentication_type", '"UserAssignedIdentity"'),
        (APP, "storage_user_assigned_identity_id", IDENTITY),
        (APP, "identity.0.identity_ids", [IDENTITY]),
        (APP, "runtime_name", '"python"'),
        (APP, "runtime_version", '"3.13"'),
        (APP, "site_config.0.minimum_tls_version", '"1.2"'),
        (APP, "site_config.0.scm_minimum_tls_version", '"1.2"'),
        (
            APP,
            "site_config.0.ip_restriction_default_action",
            '${length(var.allowed_ip_ranges) > 0 ? "Deny" : "Allow"}',
        ),
        (("azurerm_service_plan", "app"), "sku_name", '"FC1"'),
        (("azurerm_application_insights", "app"), "local_authentication_enabled", False),
        (("azurerm_log_analytics_workspace", "main"), "local_authentication_enabled", False),
        (("azurerm_cognitive_deployment", "model"), "sku.0.capacity", "${each.value.capacity}"),
    ],
    ids=str,
)
def test_guard(resource: tuple[str, str], path: str, value: object) -> None:
    found: Any = RESOURCES[resource]
    for step in path.split("."):
        found = found[int(step)] if step.isdigit() else found[step]
    assert found == value


def test_the_apps_identity_has_three_roles_and_no_more() -> None:
    roles = {
        body["role_definition_name"].strip('"'): (body["scope"], body["principal_id"], body["principal_type"])
        for (kind, _), body in RESOURCES.items()
        if kind == "azurerm_role_assignment"
    }
    principal = ("${azurerm_user_assigned_identity.app.principal_id}", '"ServicePrincipal"')
    assert roles == {
        "Storage Blob Data Owner": ("${azurerm_storage_account.app.id}", *principal),
        "Cognitive Services OpenAI User": ("${each.value.id}", *principal),
        "Monitoring Metrics Publisher": ("${azurerm_application_insights.app.id}", *principal),
    }


def test_nothing_asks_the_provider_for_a_key() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TERRAFORM_FILES)
    secrets = r"primary_access_key|secondary_access_key|_connection_string\b|shared_key\b|host_keys|site_credential"
    found = set(re.findall(rf"\.\w*(?:{secrets})", text))
    # The connection string of Application Insights names an endpoint; with local sign-in off it opens nothing.
    assert found == set()
    assert text.count("azurerm_application_insights.app.connection_string") == 1


# ---- Variables and tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIABLES)
def test_variable_is_described_and_has_a_default(name: str) -> None:
    variable = VARIABLES[name]
    assert {"type", "description", "default"} <= variable.keys()
    assert len(variable["description"]) > 20
    if variable["type"] not in ("bool", "${bool}"):
        assert variable.get("validation"), "takes any value"
    for validation in variable.get("validation", []):
        assert name in validation["error_message"], "the message must name the variable"


def test_every_output_is_described() -> None:
    outputs = parsed(INFRA / "outputs.tf")["output"]
    assert all(len(body["description"]) > 10 for output in outputs for body in output.values())


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_a_persons_own_tfvars_change_no_test(path: Path) -> None:
    pinned = parsed(path)["variables"][0]
    assert set(pinned) == set(VARIABLES), "`terraform test` loads terraform.tfvars: pin every variable"


def test_every_validation_is_tested() -> None:
    refused = [
        variable.removeprefix("${").removesuffix("}").removeprefix("var.")
        for path in TEST_FILES
        for run in parsed(path)["run"]
        for body in run.values()
        for variable in body.get("expect_failures", [])
    ]
    untested = {
        name: (len(variable["validation"]), refused.count(name))
        for name, variable in VARIABLES.items()
        if len(variable.get("validation", [])) > refused.count(name)
    }
    assert untested == {}


@pytest.mark.parametrize("path", sorted((INFRA / "env").glob("*.tfvars")), ids=lambda path: path.name)
def test_the_environments_set_what_there_is(path: Path) -> None:
    assert set(parsed(path)) <= set(VARIABLES)


# ---- Settings --------------------------------------------------------------------------------------------------------


def app_setting_names() -> set[str]:
    """The names in `local.app_settings`, as they stand there."""
    text = (INFRA / "app.tf").read_text(encoding="utf-8")
    block = text[text.index("app_settings = merge(") : text.index("resource ")]
    return set(re.findall(r"^\s+([A-Z][A-Za-z0-9_]+)\s+=", block, re.MULTILINE)) | set(
        re.findall(r"\{ ([A-Z][A-Z_]+) = ", block)
    )


def settings_read_by_the_relay() -> set[str]:
    """Every string in relay/settings.py that looks like a setting's name and is read."""
    tree = ast.parse((ROOT / "relay" / "settings.py").read_text(encoding="utf-8"))
    return {
        argument.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr in ("text", "get", "seconds", "whole", "choice", "flag", "number")
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.isupper()
    }


def relay_setting_names() -> set[str]:
    local_values = next(values for values in parsed(INFRA / "app.tf")["locals"] if "relay_setting_ranges" in values)
    return {name.strip('"') for name in local_values["relay_setting_ranges"] if name != "__is_block__"}


@pytest.mark.parametrize("name", sorted(relay_setting_names()))
def test_a_relay_setting_has_the_range_that_the_relay_takes(name: str) -> None:
    local_values = next(values for values in parsed(INFRA / "app.tf")["locals"] if "relay_setting_ranges" in values)
    ranges = {name.strip('"'): bounds for name, bounds in local_values["relay_setting_ranges"].items()}
    asked = {"AZURE_OPENAI_ENDPOINT": "https://a.openai.azure.com/", "AZURE_OPENAI_DEPLOYMENTS": "a"}
    whole = name.startswith("MAX_")
    for bound, beyond in zip(ranges[name], (-1, 1), strict=True):
        Settings.read(asked | {name: str(bound)})
        with pytest.raises(SettingsError):
            Settings.read(asked | {name: str(bound + beyond * (1 if whole else 0.01))})


def test_relay_settings_are_those_that_the_relay_reads() -> None:
    # Where the model service is, who the app is and who may call it, Terraform decides; a key has no place there.
    decided = {name for name in settings_read_by_the_relay() if name.startswith(("AZURE_", "IDENTITY_", "HTTP_AUTH_"))}
    assert relay_setting_names() == settings_read_by_the_relay() - decided


def test_the_fixed_settings_are_read_by_someone() -> None:
    by_the_host = {
        "AzureWebJobsStorage__accountName",
        "AzureWebJobsStorage__credential",
        "AzureWebJobsStorage__clientId",
        # The worker's Application Insights distribution.
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
        "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY",
        "OTEL_TRACES_SAMPLER",
    }
    read = app_setting_names() & settings_read_by_the_relay()
    assert app_setting_names() - by_the_host == read
    # With sign-in in front, the last lets the functions ask for no key.
    assert {"AZURE_OPENAI_BACKENDS", "AZURE_CLIENT_ID", "HTTP_AUTH_LEVEL"} <= read


def test_the_relay_understands_the_backends_that_terraform_writes() -> None:
    text = (INFRA / "app.tf").read_text(encoding="utf-8")
    entry = text[text.index("AZURE_OPENAI_BACKENDS") : text.index("APPLICATIONINSIGHTS_CONNECTION_STRING")]
    members = re.findall(r"^\s+(\w+)\s+= (?:deployment|azurerm)", entry, re.MULTILINE)
    sample = {
        "name": "two/gpt-5.4-mini",
        "endpoint": "https://two.openai.azure.com/",
        "deployment": "gpt-5.4-mini",
        "model": "gpt-5.4-mini",
        "priority": 2,
    }
    assert sorted(members) == sorted(sample)
    settings = Settings.read(
        {
            "AZURE_OPENAI_BACKENDS": json.dumps([sample]),
            "AZURE_CLIENT_ID": "00000000-0000-0000-0000-000000000005",
            "IDENTITY_ENDPOINT": "http://localhost:8081/msi/token",
        }
    )
    assert [(backend.name, backend.priority) for backend in settings.backends] == [("two/gpt-5.4-mini", 2)]
    assert settings.api_key is None
    assert settings.identity is not None
    assert settings.identity.client_id == "00000000-0000-0000-0000-000000000005"


# ---- Telemetry -------------------------------------------------------------------------------------------------------


def telemetry_attributes() -> dict[str, str]:
    local_values = next(
        values for values in parsed(INFRA / "monitoring.tf")["locals"] if "telemetry_attributes" in values
    )
    return {name: value.strip('"') for name, value in local_values["telemetry_attributes"].items()}


def test_the_queries_take_their_names_from_one_place() -> None:
    streams = (INFRA / "queries" / "streams.kql").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)\}", streams)) == telemetry_attributes().keys() | {"application_insights_id"}
    for path in (INFRA / "queries").glob("*.kql"):
        assert not re.search(r"gen_ai\.|relay\.", path.read_text(encoding="utf-8")), path.name


def test_every_query_is_used_and_reads_what_streams_has() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TERRAFORM_FILES)
    columns = set(
        re.findall(r"^    (\w+)", (INFRA / "queries" / "streams.kql").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for path in (INFRA / "queries").glob("*.kql"):
        assert f'"{path.stem}' in text or f"/{path.name}" in text, f"{path.name} is used nowhere"
        if path.stem == "streams":
            continue
        query = path.read_text(encoding="utf-8")
        assert query.startswith("streams\n")
        own = set(re.findall(r"(\w+) = ", query))
        words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", re.sub(r'"[^"]*"|\$\{[^}]*\}', "", query)))
        assert words - columns - own == set(), path.name


def test_the_relay_reports_what_the_queries_ask_for() -> None:
    reported = (ROOT / "relay" / "telemetry.py").read_text(encoding="utf-8")
    assert {name for name in telemetry_attributes().values() if f'"{name}"' not in reported} == set()


# ---- The package -----------------------------------------------------------------------------------------------------


def imported_files() -> set[str]:
    """`function_app.py` and every file of this project that it needs, however deep."""
    found: set[str] = set()
    waiting = ["function_app.py"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                path = module.replace(".", "/")
                waiting += [file for file in (f"{path}.py", f"{path}/__init__.py") if (ROOT / file).is_file()]
    return found


def test_the_package_is_what_the_app_imports() -> None:
    packed = set(publish.package_files(ROOT))
    assert imported_files() <= packed, "the deployed app would miss a module"
    assert {name for name in packed if name.endswith(".py")} == imported_files(), "a module that nothing imports"
    others = {name for name in packed if not name.endswith(".py")}
    assert {"host.json", "requirements.txt"} <= others
    assert all(name.startswith("relay/") for name in others - {"host.json", "requirements.txt"})


def test_git_reads_funcignore_as_the_script_does(tmp_path: Path) -> None:
    """Core Tools and VS Code read `.funcignore` by git's rules; git is the judge of those."""
    for name in ("relay/deep/er.py", "relay/__pycache__/a.pyc", "relay/b.pyc", "tests/t.py", "infra/main.tf"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name in ("function_app.py", "host.json", "requirements.txt", "README.md", "local.settings.json", ".env"):
        (tmp_path / name).touch()
    shutil.copy(ROOT / ".funcignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    listed = subprocess.run(
        ["git", "-C", tmp_path, "ls-files", "--others", "--exclude-from=.funcignore"],
        check=True,
        capture_output=True,
        text=True,
    )
    expected = ["function_app.py", "host.json", "relay/deep/er.py", "requirements.txt"]
    assert sorted(listed.stdout.split()) == expected
    assert publish.package_files(tmp_path) == expected


# ---- Tools, where they are -------------------------------------------------------------------------------------------


def terraform(
    folder: Path, *arguments: str, data: Path | None = None, feed: str = ""
) -> subprocess.CompletedProcess[str]:
    executable = shutil.which("terraform")
    if executable is None:
        pytest.skip("terraform is not installed")
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
    return subprocess.run(
        [executable, f"-chdir={folder}", *arguments],
        input=feed,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )


def test_terraform_is_formatted() -> None:
    done = terraform(INFRA, "fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout


def test_terraform_hashes_the_files_that_are_packed(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in publish.package_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / ".funcignore", folder)
    (folder / "infra").mkdir()
    # package.tf needs no provider.
    shutil.copy(INFRA / "package.tf", folder / "infra")

    def hashes() -> tuple[str, str]:
        files = terraform(folder / "infra", "console", feed="jsonencode(local.package_files)\n")
        assert json.loads(json.loads(files.stdout)) == publish.package_files(folder), files.stderr
        done = terraform(folder / "infra", "console", feed="local.package_hash\n")
        return done.stdout.strip().strip('"'), publish.package_hash(folder)

    before = hashes()
    assert before[0] == before[1]
    (folder / "README.md").write_text("not packed", encoding="utf-8")
    (folder / "relay" / "__pycache__").mkdir()
    (folder / "relay" / "__pycache__" / "settings.cpython-313.pyc").write_bytes(b"not packed")
    assert hashes() == before
    with (folder / "function_app.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    after = hashes()
    assert after[0] == after[1] != before[0]


@pytest.mark.timeout(900)
def test_terraform_validates_and_passes_its_tests(tmp_path: Path) -> None:
    # A copy, so that no file of Terraform's own is left in the tree.
    folder = tmp_path / "project" / "infra"
    shutil.copytree(
        INFRA, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars", "*_override.tf")
    )
    for name in [".funcignore", *publish.package_files(ROOT)]:
        (folder.parent / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder.parent / name)
    initialised = terraform(folder, "init", "-backend=false", "-input=false", "-no-color")
    if initialised.returncode != 0:
        pytest.skip(f"the azurerm provider can't be had here: {' '.join(initialised.stderr.split())[:300]}")
    validated = terraform(folder, "validate", "-no-color")
    assert validated.returncode == 0, validated.stdout + validated.stderr
    tested = terraform(folder, "test", "-no-color")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_checkov_skip_has_a_reason() -> None:
    for path in TERRAFORM_FILES:
        for skip in re.findall(r"checkov:skip=(.*)", path.read_text(encoding="utf-8")):
            check, _, reason = skip.partition(":")
            assert re.fullmatch(r"CKV2?_AZURE_[0-9]+", check), skip
            assert len(reason.split()) >= 5, f"{path.name}: {check} is skipped without a reason"


@pytest.mark.timeout(300)
def test_checkov_reports_no_failure() -> None:
    executable = shutil.which("checkov")
    if executable is None:
        pytest.skip("checkov is not installed (pip install checkov, in an environment of its own)")
    done = subprocess.run(
        [executable, "--directory", INFRA, "--framework", "terraform", "--skip-download", "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    report = json.loads(done.stdout)
    assert [f"{check['check_id']} {check['resource']}" for check in report["results"]["failed_checks"]] == []
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 10
    used = {check["check_id"] for check in report["results"]["skipped_checks"]}
    written = {
        skip for path in TERRAFORM_FILES for skip in re.findall(r"checkov:skip=(\w+)", path.read_text(encoding="utf-8"))
    }
    assert written == used, "a skip that nothing needs"


# ---- Pipelines -------------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_pipelines_hold_no_secret() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "deploy.yml"}
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert "secrets." not in text, f"{path.name}: sign in by OIDC"
        assert re.search(r"^permissions:", text, re.MULTILINE), f"{path.name} takes the default permissions"
        for used in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@(v[0-9]+|[0-9a-f]{40})", used), used


def test_the_deployment_is_guarded() -> None:
    text = (ROOT / ".github" / "workflows" / "deploy.yml").read_text(encoding="utf-8")
    assert "id-token: write" in text
    assert re.search(r"^ {4}environment: ", text, re.MULTILINE), "apply must wait for a protected environment"
    assert "cancel-in-progress: false" in text, "an apply that is cut off leaves a locked state"
    assert "infra/smoke.py" in text
