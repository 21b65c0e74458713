# The files of the package and their hash. `.funcignore` is the single source of truth: this file, publish.py
# and Azure's own tools parse it. It is limited to four kinds of rule, which all of them interpret identically:
#
#   *               excludes everything ...
#   !name.py        ... except this file
#   !folder/**      ... and all files in this folder, recursively (git also needs the rule !folder/ before it)
#   name/ *.suffix  ... and of those excludes folders of this name and files with this suffix, at any depth

locals {
  package_root = "${path.module}/.."

  package_rules = [
    for line in split("\n", file("${local.package_root}/.funcignore")) : trimspace(line)
    if trimspace(line) != "" && !startswith(trimspace(line), "#")
  ]

  package_included = [for rule in local.package_rules : trimprefix(rule, "!") if startswith(rule, "!") && !endswith(rule, "/")]
  package_excluded = [for rule in local.package_rules : rule if !startswith(rule, "!") && rule != "*"]

  package_excluded_folders  = [for rule in local.package_excluded : "/${rule}" if endswith(rule, "/")]
  package_excluded_suffixes = [for rule in local.package_excluded : trimprefix(rule, "*") if startswith(rule, "*.")]

  package_candidates = distinct(flatten([for pattern in local.package_included : tolist(fileset(local.package_root, pattern))]))
  package_excluded_files = toset([
    for name in local.package_candidates : name
    if anytrue(concat([for folder in local.package_excluded_folders : strcontains("/${name}", folder)], [for suffix in local.package_excluded_suffixes : endswith(name, suffix)]))
  ])
  package_files = sort(setsubtract(local.package_candidates, local.package_excluded_files))

  # Of contents and names, not timestamps: the same files on another machine give the same hash.
  package_hash = sha256(join("", [for name in local.package_files : format("%s  %s\n", filesha256("${local.package_root}/${name}"), name)]))
}
