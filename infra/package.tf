# Which files are the app, and a hash over them. `.funcignore` is the one source of truth: this file, publish.py and
# Azure's own tools read the same rules. It is kept to four kinds of rule, which mean the same to all of them:
#
#   *            everything is left out ...
#   !name.py     ... but this file
#   !folder/**   ... and everything in this folder (the rule !folder/ before it lets git's own way of reading get there)
#   name/ *.end  ... and of that not: folders of this name, files with this end, at any depth

locals {
  package_root = "${path.module}/.."

  package_rules = [
    for line in split("\n", file("${local.package_root}/.funcignore")) : trimspace(line)
    if trimspace(line) != "" && !startswith(trimspace(line), "#")
  ]

  package_included = [for rule in local.package_rules : trimprefix(rule, "!") if startswith(rule, "!") && !endswith(rule, "/")]
  package_excluded = [for rule in local.package_rules : rule if !startswith(rule, "!") && rule != "*"]

  package_excluded_folders = [for rule in local.package_excluded : "/${rule}" if endswith(rule, "/")]
  package_excluded_ends    = [for rule in local.package_excluded : trimprefix(rule, "*") if startswith(rule, "*.")]

  package_candidates = distinct(flatten([for pattern in local.package_included : tolist(fileset(local.package_root, pattern))]))
  package_left_out = toset([
    for name in local.package_candidates : name
    if anytrue(concat([for folder in local.package_excluded_folders : strcontains("/${name}", folder)], [for end in local.package_excluded_ends : endswith(name, end)]))
  ])
  package_files = sort(setsubtract(local.package_candidates, local.package_left_out))

  # Contents, not times: the same files on another machine are the same code.
  package_hash = sha256(join("", [for name in local.package_files : format("%s  %s\n", filesha256("${local.package_root}/${name}"), name)]))
}
