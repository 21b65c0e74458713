/** Highlighted code: highlight.js' grammars into nodes, without HTML. Loaded with the first block of code. */

import { common, createLowlight } from "lowlight";

import type { Content } from "./markdown/node";

interface Tree {
  readonly type: string;
  readonly value?: string;
  readonly properties?: { className?: unknown };
  readonly children?: readonly Tree[];
}

const lowlight = createLowlight(common);
const ALIASES = new Map(
  Object.entries({
    jsx: "javascript",
    tsx: "typescript",
    shell: "bash",
    console: "shell",
    vue: "xml",
    svelte: "xml",
    jsonc: "json",
    json5: "json",
    ps1: "bash",
    "c++": "cpp",
    "c#": "csharp",
    html: "xml",
  }),
);

/** The scopes that the page's style colours: https://highlightjs.readthedocs.io/en/latest/css-classes-reference.html */
const SCOPES = new Set(
  "keyword literal name selector-tag string regexp addition attribute comment quote meta number symbol bullet link built_in type attr title section deletion variable".split(
    " ",
  ),
);

/** The code in spans with classes; null when the language is not known. */
export function highlight(code: string, language: string): Content[] | null {
  const lower = language.toLowerCase();
  const name = lowlight.registered(lower) ? lower : (ALIASES.get(lower) ?? "");
  if (!name || !lowlight.registered(name)) return null;
  return convert((lowlight.highlight(name, code) as Tree).children ?? []);
}

function convert(trees: readonly Tree[]): Content[] {
  const nodes: Content[] = [];
  for (const tree of trees) {
    if (tree.type === "text") add(nodes, tree.value ?? "");
    else {
      const children = convert(tree.children ?? []);
      const scope = Array.isArray(tree.properties?.className)
        ? String(tree.properties.className[0])
            .replace(/^hljs-/, "")
            .replace(/_$/, "")
        : "";
      if (SCOPES.has(scope)) nodes.push({ tag: "span", className: `hl-${scope}`, children });
      else for (const child of children) add(nodes, child);
    }
  }
  return nodes;
}

function add(nodes: Content[], node: Content): void {
  const last = nodes.at(-1);
  if (typeof node === "string" && typeof last === "string") nodes[nodes.length - 1] = last + node;
  else if (node !== "") nodes.push(node);
}
