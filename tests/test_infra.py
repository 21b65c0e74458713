"""Tests of the deployment that need no Azure: provider schema, security settings, app settings, package, workflows.

`terraform validate` and `terraform test` run if the provider can be downloaded, checkov if it is installed.
"""

import ast
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from infra import publish
from relay.callers.request import _BODY_TIMEOUT
from relay.callers.settings import LIMIT_NAMES, CallerSettings
from relay.settings import Settings, SettingsError
from relay.streaming.stream import _TERMINAL_EVENT_TIMEOUT
from tests.infra_guards import parse_hcl

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
TERRAFORM_FILES = sorted(INFRA.glob("*.tf"))
TEST_FILES = sorted((INFRA / "tests").glob("*.tftest.hcl"))
SCHEMA = json.loads(Path(__file__).with_name("azurerm-schema-5.2.0.json").read_text(encoding="utf-8"))

# The arguments that Terraform allows in any resource, in addition to the provider's attributes.
META_ARGUMENTS = {"count", "for_each", "depends_on", "provider", "lifecycle", "provisioner", "connection"}


@functools.cache
def read_hcl(path: Path) -> dict[str, Any]:
    return parse_hcl(path.read_text(encoding="utf-8"))


def two_label_blocks(blocks: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Type, name and body of blocks with two labels, such as resources and data sources."""
    for block in blocks:
        for kind, bodies in block.items():
            for name, body in bodies.items():
                yield kind, name, body


CONFIGURATION = {path: read_hcl(path) for path in TERRAFORM_FILES}
RESOURCES = {
    (kind, name): body
    for content in CONFIGURATION.values()
    for kind, name, body in two_label_blocks(content.get("resource", []))
}
VARIABLES = {
    name: body
    for content in CONFIGURATION.values()
    for block in content.get("variable", [])
    for name, body in block.items()
}


# ---- Provider schema -------------------------------------------------------------------------------------------------


@dataclass
class SchemaCheck:
    """Compares blocks with the provider's schema and collects the differences in `errors`."""

    errors: list[str]

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
                    self.errors.append(f"{where}.{name} is a block, not an attribute")
                    continue
                counts[name] = (len(value), counts.get(name, (0, False))[1])
                for inner in value:
                    self.block(inner, blocks[name][2], f"{where}.{name}")
            else:
                self.errors.append(f"{where}.{name} does not exist")
        for name, flags in attributes.items():
            if "r" in flags and name not in body:
                self.errors.append(f"{where}.{name} is required")
        for name, (minimum, maximum, _) in blocks.items():
            count, dynamic = counts.get(name, (0, False))
            if count < minimum and not dynamic:
                self.errors.append(f"{where}.{name} is required")
            if maximum and count > maximum:
                self.errors.append(f"{where}.{name} may occur {maximum} times, not {count}")

    def _dynamic(self, kind: str, body: dict[str, Any], blocks: dict[str, Any], where: str) -> None:
        if kind not in blocks:
            self.errors.append(f"{where}.{kind} does not exist")
            return
        if "for_each" not in body or len(body.get("content", [])) != 1:
            self.errors.append(f"{where}.{kind} requires for_each and one content block")
            return
        self.block(body["content"][0], blocks[kind][2], f"{where}.{kind}")

    def _attribute(self, name: str, value: Any, flags: str, where: str) -> None:
        if "r" not in flags and "o" not in flags:
            self.errors.append(f"{where}.{name} is read-only")
        if isinstance(value, list) and any(isinstance(inner, dict) and "__is_block__" in inner for inner in value):
            self.errors.append(f"{where}.{name} is an attribute, not a block")


def schema_errors(content: dict[str, Any]) -> list[str]:
    check = SchemaCheck([])
    for section, schemas in (("resource", SCHEMA["resources"]), ("data", SCHEMA["data"])):
        for kind, name, body in two_label_blocks(content.get(section, [])):
            if kind == "terraform_data":
                continue
            if kind not in schemas:
                check.errors.append(f"{kind} does not exist")
                continue
            check.block(body, schemas[kind], f"{kind}.{name}", frozenset(META_ARGUMENTS))
            for lifecycle in body.get("lifecycle", []):
                for ignored in lifecycle.get("ignore_changes", []):
                    attribute = re.split(r"[\[.]", str(ignored).removeprefix("${").removesuffix("}"))[0]
                    if attribute not in schemas[kind]["attributes"] and attribute not in schemas[kind].get(
                        "blocks", {}
                    ):
                        check.errors.append(f"{kind}.{name} ignores {attribute}, which does not exist")
    for provider in content.get("provider", []):
        check.block(provider["azurerm"], SCHEMA["provider"], "provider")
    return check.errors


@pytest.mark.parametrize("path", TERRAFORM_FILES, ids=lambda path: path.name)
def test_all_arguments_are_in_the_provider_schema(path: Path) -> None:
    assert schema_errors(CONFIGURATION[path]) == []


REFERENCE = re.compile(r"(?<![\w.\"])(data\.)?(azurerm_\w+)\.(\w+)(?:\[(?:[^\[\]]|\[[^\]]*\])*\])?(?:\.(\w+))?")


@pytest.mark.parametrize("path", [*TERRAFORM_FILES, *TEST_FILES], ids=lambda path: path.name)
def test_all_references_resolve(path: Path) -> None:
    text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8"))
    errors = []
    for data, kind, name, attribute in REFERENCE.findall(text):
        if data:
            known = (kind, name) == ("azurerm_client_config", "current")
            schema = SCHEMA["data"].get(kind)
        else:
            known = (kind, name) in RESOURCES
            schema = SCHEMA["resources"].get(kind)
        if not known or schema is None:
            errors.append(f"{kind}.{name} is not declared")
        elif attribute and attribute not in schema["attributes"] and attribute not in schema.get("blocks", {}):
            errors.append(f"{kind}.{name} has no {attribute}")
    assert errors == []


def test_mocks_set_only_computed_attributes() -> None:
    not_computed = []
    for path in sorted((INFRA / "tests" / "mocks").glob("*.tfmock.hcl")):
        content = read_hcl(path)
        for section, schemas in (("mock_resource", SCHEMA["resources"]), ("mock_data", SCHEMA["data"])):
            for block in content.get(section, []):
                for kind, body in block.items():
                    known = schemas.get(kind, {"attributes": {}})["attributes"]
                    not_computed += [f"{kind}.{name}" for name in body["defaults"] if "c" not in known.get(name, "")]
    assert not_computed == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('name = "x"', "azurerm_resource_group.x.location is required"),
        ('name = "x"\nlocation = "x"\nunknown = "x"', "azurerm_resource_group.x.unknown does not exist"),
        ('name = "x"\nlocation = "x"\nunknown {}', "azurerm_resource_group.x.unknown does not exist"),
        (
            'name = "x"\nlocation = "x"\nlifecycle {\n ignore_changes = [unknown]\n}',
            "azurerm_resource_group.x ignores unknown, which does not exist",
        ),
        (
            'name = "x"\nlocation = "x"\ndynamic "unknown" {\n for_each = []\n content {}\n}',
            "azurerm_resource_group.x.unknown does not exist",
        ),
    ],
)
def test_schema_check_reports_an_error(text: str, error: str) -> None:
    content = parse_hcl(f'resource "azurerm_resource_group" "x" {{\n{text}\n}}\n')
    assert schema_errors(content) == [error]


def test_schema_check_reports_errors_in_nested_blocks_and_read_only_attributes() -> None:
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
    assert schema_errors(parse_hcl(text)) == [
        "azurerm_user_assigned_identity.x.principal_id is read-only",
        "azurerm_cognitive_deployment.x.model.name is required",
        "azurerm_cognitive_deployment.x.model may occur 1 times, not 2",
        "azurerm_cognitive_deployment.x.sku is required",
    ]


# ---- Secrets ---------------------------------------------------------------------------------------------------------


def test_configuration_reads_no_key_from_the_provider() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TERRAFORM_FILES)
    secrets = r"primary_access_key|secondary_access_key|_connection_string\b|shared_key\b|host_keys|site_credential"
    assert set(re.findall(rf"\.\w*(?:{secrets})", text)) == set()
    # The connection string of Application Insights is no secret: with local authentication off it grants no access.
    assert text.count("azurerm_application_insights.app.connection_string") == 1


# ---- Variables and tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIABLES)
def test_variable_has_description_default_and_validation(name: str) -> None:
    variable = VARIABLES[name]
    assert {"type", "description", "default"} <= variable.keys()
    assert len(variable["description"]) > 20
    if variable["type"] not in ("bool", "${bool}"):
        assert variable.get("validation"), "has no validation"
    for validation in variable.get("validation", []):
        assert name in validation["error_message"], "the message must name the variable"


def test_all_variables_are_in_the_documentation() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("deploy.md", "landing-zone.md"))
    assert {name for name in VARIABLES if f"`{name}" not in text} == set()


def test_all_outputs_have_a_description() -> None:
    outputs = read_hcl(INFRA / "outputs.tf")["output"]
    assert all(len(body["description"]) > 10 for output in outputs for body in output.values())


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_terraform_tests_pin_all_variables(path: Path) -> None:
    pinned = read_hcl(path)["variables"][0]
    assert set(pinned) == set(VARIABLES), "`terraform test` also loads a local terraform.tfvars: pin every variable"


def test_all_validations_have_a_test() -> None:
    expected_failures = [
        variable.removeprefix("${").removesuffix("}").removeprefix("var.")
        for path in TEST_FILES
        for run in read_hcl(path)["run"]
        for body in run.values()
        for variable in body.get("expect_failures", [])
    ]
    untested = {
        name: (len(variable["validation"]), expected_failures.count(name))
        for name, variable in VARIABLES.items()
        if len(variable.get("validation", [])) > expected_failures.count(name)
    }
    assert untested == {}


@pytest.mark.parametrize("path", sorted((INFRA / "env").glob("*.tfvars")), ids=lambda path: path.name)
def test_environment_files_set_only_existing_variables(path: Path) -> None:
    assert set(read_hcl(path)) <= set(VARIABLES)


# ---- Settings --------------------------------------------------------------------------------------------------------


def app_setting_names() -> set[str]:
    """The setting names in `local.app_settings`."""
    text = (INFRA / "app.tf").read_text(encoding="utf-8")
    block = text[text.index("app_settings = merge(") : text.index("resource ")]
    return set(re.findall(r"^\s+([A-Z][A-Za-z0-9_]+)\s+=", block, re.MULTILINE)) | set(
        re.findall(r"\{ ([A-Z][A-Z_]+) = ", block)
    )


def settings_read_by_the_relay() -> set[str]:
    """The setting names that relay/settings.py passes to a method as first argument."""
    tree = ast.parse((ROOT / "relay" / "settings.py").read_text(encoding="utf-8"))
    return {
        argument.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.isupper()
    }


def relay_setting_ranges() -> dict[str, tuple[float, float]]:
    """The minimum and maximum of each setting in `local.relay_setting_ranges`."""
    local_values = next(values for values in read_hcl(INFRA / "app.tf")["locals"] if "relay_setting_ranges" in values)
    return {name: (bounds[0], bounds[1]) for name, bounds in local_values["relay_setting_ranges"].items()}


@pytest.mark.parametrize("name", sorted(relay_setting_ranges()))
def test_relay_setting_range_is_that_of_the_relay(name: str) -> None:
    required = {"AZURE_OPENAI_ENDPOINT": "https://a.openai.azure.com/", "AZURE_OPENAI_DEPLOYMENTS": "a"}
    step = 0.01 if name.endswith("_SECONDS") else 1
    minimum, maximum = relay_setting_ranges()[name]
    for valid, invalid in ((minimum, minimum - step), (maximum, maximum + step)):
        Settings.read(required | {name: str(valid)})
        with pytest.raises(SettingsError):
            Settings.read(required | {name: str(invalid)})


def test_relay_settings_are_those_that_the_relay_reads() -> None:
    # Terraform itself sets endpoints, identity, authentication level and prices, and never sets an API key.
    set_by_terraform = ("AZURE_", "IDENTITY_", "HTTP_AUTH_", "TOKEN_")
    read = settings_read_by_the_relay()
    chat = {name for name in read if name.startswith("CHAT_")}
    configurable = {name for name in read - chat if not name.startswith(set_by_terraform)}
    assert relay_setting_ranges().keys() == configurable
    local_values = next(values for values in read_hcl(INFRA / "app.tf")["locals"] if "chat_setting_names" in values)
    assert {name.strip('"') for name in local_values["chat_setting_names"]} == chat


def test_body_size_limit_of_the_host_is_a_small_multiple_of_the_relays() -> None:
    """A body somewhat too large gets the app's 413; a huge one is refused by the host before it is read."""
    name, default = "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT", Settings(backends=()).max_body_bytes
    expression = re.search(rf"{name} = (.*)", (INFRA / "app.tf").read_text())
    assert expression is not None
    assert expression[1] == f'tostring(4 * tonumber(lookup(var.relay_settings, "MAX_BODY_BYTES", "{default}")))'
    example = json.loads((ROOT / "local.settings.json.example").read_text())["Values"]
    assert int(example[name]) == 4 * int(example["MAX_BODY_BYTES"])


def test_function_timeout_fits_the_longest_stream() -> None:
    """At functionTimeout the host restarts the worker with all its streams: no request of the app may last that long,
    and one that hangs is not to hold its place for much longer."""
    hours, minutes, seconds = map(int, json.loads((ROOT / "host.json").read_text())["functionTimeout"].split(":"))
    timeout = hours * 3600 + minutes * 60 + seconds
    longest = relay_setting_ranges()["STREAM_DEADLINE_SECONDS"][1] + _BODY_TIMEOUT + _TERMINAL_EVENT_TIMEOUT
    assert longest < timeout <= longest + 60


def test_app_settings_are_read_by_the_relay_or_the_host() -> None:
    read_by_the_host = {
        "AzureWebJobsStorage__blobServiceUri",
        "AzureWebJobsStorage__credential",
        "AzureWebJobsStorage__clientId",
        # The worker's Application Insights distribution.
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
        "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY",
        "OTEL_TRACES_SAMPLER",
        "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT",
        "AzureWebJobsDisableHomepage",
    }
    read_by_the_relay = app_setting_names() & settings_read_by_the_relay()
    assert app_setting_names() - read_by_the_host == read_by_the_relay
    assert {"AZURE_OPENAI_BACKENDS", "AZURE_CLIENT_ID", "HTTP_AUTH_LEVEL"} <= read_by_the_relay


def test_relay_accepts_the_backends_that_terraform_writes() -> None:
    text = (INFRA / "app.tf").read_text(encoding="utf-8")
    entry = text[text.index("AZURE_OPENAI_BACKENDS") : text.index("APPLICATIONINSIGHTS_CONNECTION_STRING")]
    members = re.findall(r"^\s+(\w+)\s+= (?:deployment|local)", entry, re.MULTILINE)
    sample = {
        "name": "two/gpt-5.4-mini",
        "endpoint": "https://two.openai.azure.com/",
        "deployment": "gpt-5.4-mini",
        "model": "gpt-5.4-mini",
        "priority": 2,
        "wire": "responses",
    }
    assert sorted(members) == sorted(sample)
    settings = Settings.read(
        {
            "AZURE_OPENAI_BACKENDS": json.dumps([sample]),
            "AZURE_CLIENT_ID": "00000000-0000-0000-0000-000000000005",
            "IDENTITY_ENDPOINT": "http://localhost:8081/msi/token",
        }
    )
    (backend,) = settings.backends
    assert (backend.name, backend.priority, backend.wire) == ("two/gpt-5.4-mini", 2, "responses")
    assert settings.api_key is None
    assert settings.identity is not None
    assert settings.identity.client_id == "00000000-0000-0000-0000-000000000005"


def caller_settings_of_terraform() -> dict[str, str]:
    """What `infra/callers.tf` writes, by the members that it names there."""
    members = re.findall(r"^            (\w+) +=", (INFRA / "callers.tf").read_text(encoding="utf-8"), re.MULTILINE)
    assert members == ["key_digests", "principals", "models", "limits"]
    limits = dict.fromkeys(LIMIT_NAMES, 1)
    callers = {"team-a": {"key_digests": ["0" * 64], "models": ["gpt"], "limits": limits}}
    return {"CALLERS": json.dumps(callers), "CALLER_LIMITS": json.dumps(limits)}


def test_relay_accepts_the_callers_that_terraform_writes() -> None:
    text = (INFRA / "callers.tf").read_text(encoding="utf-8")
    settings = CallerSettings.read(
        caller_settings_of_terraform()
        | {"CALLERS_1": '{"b": {"key_digests": ["%s"]}}' % ("1" * 64)}
        | {"LIMITS_STORE": "https://strelaydev123456.table.core.windows.net/callerlimits"}
    )
    assert settings is not None
    assert {caller.name for _, caller in settings.by_digest.values()} == {"team-a", "b"}
    assert settings.limits_store is not None
    written = set(re.findall(r"\b([A-Z]{2,}(?:_[A-Z]+)*)(?:_\$\{index\})?\"? +=[> ]", text)) | {"CALLERS"}
    assert written == {"CALLERS", "CALLER_LIMITS", "ENTRA_SIGN_IN", "LIMITS_STORE", "TOKEN_PRICES"}
    variables = VARIABLES["callers"]["type"], VARIABLES["caller_limits"]["type"]
    assert all(name in variable for name in LIMIT_NAMES for variable in variables)


def test_sign_in_is_believed_exactly_where_the_platform_requires_it() -> None:
    """Otherwise anyone could send the headers by which the platform names callers."""
    text = (INFRA / "callers.tf").read_text(encoding="utf-8")
    assert 'var.entra_sign_in == null ? {} : { ENTRA_SIGN_IN = "true" }' in text
    app = (INFRA / "app.tf").read_text(encoding="utf-8")
    block = app[app.index('dynamic "auth_settings_v2"') :]
    assert "for_each = var.entra_sign_in == null ? [] : [var.entra_sign_in]" in block
    for setting in ("auth_enabled", "require_authentication"):
        assert re.search(rf"{setting} += true", block)
    assert "".join(path.read_text() for path in TERRAFORM_FILES).count("ENTRA_SIGN_IN") == 1


# ---- Telemetry -------------------------------------------------------------------------------------------------------


def telemetry_attributes() -> dict[str, str]:
    local_values = next(
        values for values in read_hcl(INFRA / "monitoring.tf")["locals"] if "telemetry_attributes" in values
    )
    return {name: value.strip('"') for name, value in local_values["telemetry_attributes"].items()}


def test_queries_contain_no_telemetry_attribute_names() -> None:
    streams = (INFRA / "queries" / "streams.kql").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)\}", streams)) == telemetry_attributes().keys() | {"application_insights_id"}
    for path in (INFRA / "queries").glob("*.kql"):
        assert not re.search(r"gen_ai\.|relay\.", path.read_text(encoding="utf-8")), path.name


def test_all_queries_are_used_and_read_existing_columns() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TERRAFORM_FILES)
    columns = set(
        re.findall(r"^    (\w+)", (INFRA / "queries" / "streams.kql").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for path in (INFRA / "queries").glob("*.kql"):
        assert f'"{path.stem}' in text or f"/{path.name}" in text, f"{path.name} is not used"
        if path.stem == "streams":
            continue
        query = path.read_text(encoding="utf-8")
        assert query.startswith(("streams\n", "requests\n"))
        defined = set(re.findall(r"(\w+) = ", query))
        used = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", re.sub(r'"[^"]*"|\$\{[^}]*\}', "", query)))
        assert used - columns - defined == set(), path.name


def test_relay_reports_the_attributes_of_the_queries() -> None:
    source = (ROOT / "relay" / "telemetry.py").read_text(encoding="utf-8")
    assert {name for name in telemetry_attributes().values() if f'"{name}"' not in source} == set()


# ---- Package ---------------------------------------------------------------------------------------------------------


def imported_files() -> set[str]:
    """The paths of `function_app.py` and all modules of this project that it imports, directly or indirectly."""
    files: set[str] = set()
    pending = ["function_app.py"]
    while pending:
        file = pending.pop()
        if file not in files:
            files.add(file)
            pending += [path for module in imported_modules(file) for path in module_files(module)]
    return files


def imported_modules(file: str) -> Iterator[str]:
    """The absolute names that a file imports: modules, and names that may be modules of a package."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = Path(file).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (name.value for name in node.args if isinstance(name, ast.Constant))


def module_files(module: str) -> Iterator[str]:
    """The files of this project that importing `module` runs, including those of its parent packages."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        path = "/".join(parts[:depth])
        yield from (file for file in (f"{path}.py", f"{path}/__init__.py") if (ROOT / file).is_file())


def test_package_contains_the_imported_modules() -> None:
    files = set(publish.package_files(ROOT))
    modules = {name for name in files if name.endswith(".py")}
    assert imported_files() <= files, "an imported module is missing in the package"
    assert modules == imported_files(), "the package contains a module that is never imported"
    assert {"host.json", "requirements.txt"} <= files
    assert all(name.startswith("relay/") for name in files - modules - {"host.json", "requirements.txt"})


def test_git_interprets_funcignore_like_the_publish_script(tmp_path: Path) -> None:
    """Core Tools and VS Code interpret `.funcignore` by git's rules, so git serves as the reference here."""
    for name in (
        "function_app.py",
        "host.json",
        "requirements.txt",
        "README.md",
        "local.settings.json",
        ".env",
        "relay/module.py",
        "relay/module.pyc",
        "relay/__pycache__/module.pyc",
        "relay/page/page.html",
        "relay/page/assets/icons/icon.svg",
        "relay/page/assets/__pycache__/cached.txt",
        "tests/test.py",
        "infra/main.tf",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    shutil.copy(ROOT / ".funcignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    listing = subprocess.run(
        ["git", "-C", tmp_path, "ls-files", "--others", "--exclude-from=.funcignore"],
        check=True,
        capture_output=True,
        text=True,
    )
    expected = [
        "function_app.py",
        "host.json",
        "relay/module.py",
        "relay/page/assets/icons/icon.svg",
        "relay/page/page.html",
        "requirements.txt",
    ]
    assert sorted(listing.stdout.split()) == expected
    assert publish.package_files(tmp_path) == expected


# ---- terraform and checkov -------------------------------------------------------------------------------------------


def terraform(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    executable = shutil.which("terraform")
    if executable is None:
        pytest.skip("terraform is not installed")
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
    return subprocess.run(
        [executable, f"-chdir={folder}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )


def test_terraform_is_formatted() -> None:
    process = terraform(INFRA, "fmt", "-check", "-recursive", "-diff")
    assert process.returncode == 0, process.stdout


def test_terraform_and_publish_script_select_and_hash_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in publish.package_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / ".funcignore", folder)
    (folder / "infra").mkdir()
    (folder / "relay" / "assets" / "icons").mkdir(parents=True)
    (folder / "relay" / "assets" / "icons" / "icon.svg").write_text("included", encoding="utf-8")
    # package.tf needs no provider.
    shutil.copy(INFRA / "package.tf", folder / "infra")

    def hashes() -> tuple[str, str]:
        files = terraform(folder / "infra", "console", stdin="jsonencode(local.package_files)\n")
        assert json.loads(json.loads(files.stdout)) == publish.package_files(folder), files.stderr
        package_hash = terraform(folder / "infra", "console", stdin="local.package_hash\n")
        return package_hash.stdout.strip().strip('"'), publish.package_hash(folder)

    before = hashes()
    assert before[0] == before[1]
    assert "relay/assets/icons/icon.svg" in publish.package_files(folder)
    (folder / "README.md").write_text("excluded", encoding="utf-8")
    for cache in (folder / "relay" / "__pycache__", folder / "relay" / "assets" / "__pycache__"):
        cache.mkdir()
        (cache / "settings.cpython-313.pyc").write_bytes(b"excluded")
        (cache / "cached.txt").write_text("excluded", encoding="utf-8")
    assert hashes() == before
    with (folder / "relay" / "assets" / "icons" / "icon.svg").open("a", encoding="utf-8") as file:
        file.write("changed")
    after = hashes()
    assert after[0] == after[1] != before[0]


@pytest.mark.timeout(900)
def test_terraform_validate_and_test(tmp_path: Path) -> None:
    # Runs in a copy, so that Terraform leaves no files in the working tree.
    folder = tmp_path / "project" / "infra"
    shutil.copytree(
        INFRA, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars", "*_override.tf")
    )
    for name in [".funcignore", *publish.package_files(ROOT)]:
        (folder.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder.parent / name)
    initialised = terraform(folder, "init", "-backend=false", "-input=false", "-no-color")
    if initialised.returncode != 0:
        pytest.skip(f"the azurerm provider cannot be downloaded: {' '.join(initialised.stderr.split())[:300]}")
    validated = terraform(folder, "validate", "-no-color")
    assert validated.returncode == 0, validated.stdout + validated.stderr
    tested = terraform(folder, "test", "-no-color")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_all_checkov_skips_have_a_reason() -> None:
    for path in TERRAFORM_FILES:
        for skip in re.findall(r"checkov:skip=(.*)", path.read_text(encoding="utf-8")):
            check, _, reason = skip.partition(":")
            assert re.fullmatch(r"CKV2?_AZURE_[0-9]+", check), skip
            assert len(reason.split()) >= 5, f"{path.name}: {check} is skipped without a reason"


@pytest.mark.timeout(300)
def test_checkov_reports_no_failure() -> None:
    executable = shutil.which("checkov")
    if executable is None:
        pytest.skip("checkov is not installed (pip install checkov, in a separate environment)")
    process = subprocess.run(
        [executable, "--directory", INFRA, "--framework", "terraform", "--skip-download", "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    report = json.loads(process.stdout)
    assert [f"{check['check_id']} {check['resource']}" for check in report["results"]["failed_checks"]] == []
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 10
    used = {check["check_id"] for check in report["results"]["skipped_checks"]}
    declared = {
        skip for path in TERRAFORM_FILES for skip in re.findall(r"checkov:skip=(\w+)", path.read_text(encoding="utf-8"))
    }
    assert declared == used, "a skip has no effect"


# ---- Workflows -------------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_use_no_secret() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "deploy.yml"}
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        assert "secrets." not in text, f"{path.name}: sign in by OIDC"
        assert re.search(r"^permissions:", text, re.MULTILINE), f"{path.name} does not restrict the token's permissions"
        for action in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), (
                f"{action} can be moved: pin it by its commit"
            )
        for line in re.findall(r"uses: .*", text):
            assert re.search(r"# v[0-9]+\.[0-9]+\.[0-9]+$", line), f"{line} does not say which version it is"


def jobs(workflow: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / workflow).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return found


def test_deployment_requires_approval_and_runs_the_smoke_test() -> None:
    apply = jobs("deploy.yml")["apply"]
    assert "'prod' || 'dev'" in apply["environment"], "apply must wait for a protected environment"
    assert apply["env"] == {"ARM_CLIENT_ID": "${{ vars.AZURE_CLIENT_ID }}"}
    assert apply["concurrency"]["cancel-in-progress"] is False, "a cancelled apply leaves the state locked"
    commands = [step.get("run", "") for step in apply["steps"]]
    assert "terraform apply plan.tfplan" in commands
    assert "infra/smoke.py" in commands[-1]


def test_plan_is_seen_before_the_approval_and_is_the_one_that_is_applied() -> None:
    plan, apply = jobs("deploy.yml")["plan"], jobs("deploy.yml")["apply"]
    assert apply["needs"] == "plan"
    assert "'prod-plan' || 'dev-plan'" in plan["environment"], "no one has to approve that a plan is shown"
    assert plan["outputs"] == {"digest": "${{ steps.plan.outputs.digest }}"}
    comparison = next(step for step in apply["steps"] if "APPROVED" in step.get("env", {}))
    assert comparison["env"] == {
        "APPROVED": "${{ needs.plan.outputs.digest }}",
        "CURRENT": "${{ steps.plan.outputs.digest }}",
    }
    steps = [step.get("run", "") for step in apply["steps"]]
    assert steps.index(comparison["run"]) < steps.index("terraform apply plan.tfplan")


def test_plans_use_the_identity_that_can_only_read() -> None:
    assert jobs("deploy.yml")["plan"]["env"] == {"ARM_CLIENT_ID": "${{ vars.AZURE_PLAN_CLIENT_ID }}"}
    drift = yaml.safe_load((ROOT / ".github" / "workflows" / "drift.yml").read_text(encoding="utf-8"))
    assert drift["env"]["ARM_CLIENT_ID"] == "${{ vars.AZURE_PLAN_CLIENT_ID }}"
    # YAML 1.1 reads the key `on` as true.
    assert drift[True]["schedule"], "drift is looked for without being asked"
    for job in (jobs("deploy.yml")["plan"], drift["jobs"]["plan"]):
        commands = " ".join(step.get("run", "") for step in job["steps"])
        assert "-lock=false" in commands, "it can't write the lock"
        assert "terraform apply" not in commands
    assert "-detailed-exitcode" in drift["jobs"]["plan"]["steps"][-1]["run"]


# ---- Other tools -----------------------------------------------------------------------------------------------------


def test_azd_sets_existing_variables_and_deploys_nothing_else() -> None:
    project = yaml.safe_load((ROOT / "azure.yaml").read_text(encoding="utf-8"))
    assert project["infra"] == {"provider": "terraform", "path": "infra", "module": "main"}
    assert "services" not in project, "Terraform publishes the code"
    passed_on = json.loads((INFRA / "main.tfvars.json").read_text(encoding="utf-8"))
    assert passed_on == {"environment": "${AZURE_ENV_NAME}", "location": "${AZURE_LOCATION}"}
    assert set(passed_on) <= set(VARIABLES)


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_opentofu_does_not_read_the_tests_of_terraform(path: Path) -> None:
    """OpenTofu reads NAME.tofutest.hcl instead of NAME.tftest.hcl, whose mocks would make `tofu init` fail."""
    lines = path.with_name(path.name.replace(".tftest.", ".tofutest.")).read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("#") for line in lines)


def test_overrides_change_only_what_exists() -> None:
    override = read_hcl(INFRA / "spillover_override.tf.example")
    ((kind, name, body),) = two_label_blocks(override["resource"])
    assert (kind, name) in RESOURCES
    assert body == {"spillover_deployment_name": "${each.value.spillover}"}
    required = override["terraform"][0]["required_providers"][0]["azurerm"]
    assert required["version"] == '">= 5.10.0, < 6.0.0"', "the first version with spillover_deployment_name"
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"infra/spillover_override.tf", "infra/backend_override.tf"} <= set(ignored)


@pytest.mark.parametrize("path", sorted((INFRA / "patterns").glob("*.tf.example")), ids=lambda path: path.name)
def test_patterns_refer_to_what_the_configuration_has(path: Path) -> None:
    content = read_hcl(path)
    declared = set(RESOURCES) | {(kind, name) for kind, name, _ in two_label_blocks(content["resource"])}
    text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8"))
    for data, kind, name, attribute in REFERENCE.findall(text):
        assert not data
        assert (kind, name) in declared, f"{kind}.{name}"
        if kind in SCHEMA["resources"]:
            assert attribute in SCHEMA["resources"][kind]["attributes"], f"{kind}.{attribute}"
    known_locals = {
        name for parsed in (*CONFIGURATION.values(), content) for values in parsed.get("locals", []) for name in values
    }
    assert set(re.findall(r"\blocal\.(\w+)", text)) <= known_locals
    assert set(re.findall(r"\bvar\.(\w+)", text)) <= set(VARIABLES)
    for file in re.findall(r"\$\{path\.module\}/([\w./]+)", text):
        assert (INFRA / file).is_file(), file


def test_api_management_policy_streams_and_changes_no_body() -> None:
    policy = ElementTree.parse(INFRA / "patterns" / "api_management_policy.xml").getroot()
    assert policy.tag == "policies"
    (forward,) = policy.findall("backend/forward-request")
    assert forward.attrib == {"timeout": "240", "buffer-request-body": "false", "buffer-response": "false"}
    headers = {header.get("name"): header.get("exists-action") for header in policy.iter("set-header")}
    assert headers == {"x-ms-invocation-id": "delete", "x-functions-key": "delete"}
    (identity,) = policy.findall("inbound/authentication-managed-identity")
    assert identity.get("resource") == "api://${client_id}"
    known = {"policies", "inbound", "backend", "outbound", "on-error", "base"}
    others = {element.tag for element in policy.iter()} - known
    expected = {"forward-request", "set-header", "set-query-parameter", "authentication-managed-identity"}
    assert others == expected, "another policy may buffer"


@pytest.mark.parametrize(
    "host",
    [
        "one.openai.azure.com",
        "one.cognitiveservices.azure.com",
        "one.services.ai.azure.com",
        "one.openai.azure.us",
        "one.openai.azure.cn",
    ],
)
def test_relay_signs_in_at_every_address_of_an_account(host: str) -> None:
    """Azure reports another address of an account when it upgrades it from OpenAI to AIServices."""
    backend = {"name": "one/mini", "endpoint": f"https://{host}/", "deployment": "mini"}
    settings = Settings.read({"AZURE_OPENAI_BACKENDS": json.dumps([backend]), "AZURE_CLIENT_ID": "id"})
    assert settings.identity is not None
    assert settings.identity.scope == "https://cognitiveservices.azure.com/.default"


def test_development_container_has_the_versions_of_the_project() -> None:
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    container = json.loads(re.sub(r"(?m)^\s*//.*$", "", text))
    python = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    assert re.fullmatch(rf"mcr\.microsoft\.com/devcontainers/python:[0-9]+-{python}-\w+", container["image"])
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    terraform = next(value for name, value in container["features"].items() if "/terraform:" in name)
    assert f"terraform_version: ~{terraform['version']}" in workflow
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (.*)$", container["postCreateCommand"])[0].split():
        assert re.search(rf"(?m)^{re.escape(target.replace('.venv', '$(VENV)'))}:", makefile), target


def test_files_have_the_same_bytes_on_every_system() -> None:
    """The hash of the package, the lock files' hashes and the shell scripts depend on the line ends."""
    files = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    names = [name for name in files.split("\0") if name]
    attributes = subprocess.run(
        ["git", "-C", ROOT, "check-attr", "-z", "--stdin", "text", "eol"],
        input="\0".join(names) + "\0",
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    by_name: dict[str, dict[str, str]] = {}
    for name, attribute, value in zip(attributes[::3], attributes[1::3], attributes[2::3], strict=False):
        by_name.setdefault(name, {})[attribute] = value
    for name in names:
        if name.startswith("tests/fuzz/corpus/") or name.endswith(".png"):
            assert by_name[name]["text"] == "unset", f"{name} is to stay as it is, byte by byte"
        else:
            assert by_name[name] == {"text": "auto", "eol": "lf"}, name
