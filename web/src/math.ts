/** Formulas: TeX into MathML, as nodes. Loaded with the first formula.

    Temml writes no HTML here: its tree becomes the page's nodes, of which the gate to the DOM takes listed elements and
    attributes only. Commands that would make links, classes or pictures (`\href`, `\htmlClass`, `\includegraphics`) are
    errors, and so are endless macros; a formula with an error is shown as it was written. */

import temml from "temml";

import type { Content, VNode } from "./markdown/node";

interface MathTree {
  readonly type?: string;
  readonly text?: string;
  readonly attributes?: Record<string, unknown>;
  readonly classes?: string[];
  readonly style?: Record<string, unknown>;
  readonly children?: MathTree[];
}

const MAX_NODES = 4000;

/** The MathML of a formula; null when the TeX has an error. */
export function toNode(tex: string, display: boolean): VNode | null {
  let tree: MathTree;
  try {
    const options = {
      displayMode: display,
      annotate: true,
      throwOnError: true,
      trust: false,
      maxExpand: 300,
      maxSize: [20, 200] as [number, number],
    };
    tree = temml.__renderToMathMLTree(tex, options) as MathTree;
  } catch {
    return null;
  }
  if (tree.type !== "math") return null;
  const count = { left: MAX_NODES };
  const node = convert(tree, count);
  return count.left < 0 || typeof node === "string" ? null : node;
}

function convert(tree: MathTree, count: { left: number }): Content {
  count.left -= 1;
  if (tree.text !== undefined) return tree.text;
  const children =
    count.left > 0
      ? (tree.children ?? []).flatMap((child) =>
          child.type === undefined && child.text === undefined
            ? (child.children ?? []).map((each) => convert(each, count))
            : [convert(child, count)],
        )
      : [];
  const classes = (tree.classes ?? []).filter((name) => CLASSES.has(name)).join(" ");
  return {
    tag: tree.type ?? "mrow",
    math: strings(tree.attributes),
    style: strings(tree.style, hyphenate),
    ...(classes ? { className: classes } : {}),
    children,
  };
}

/** The classes that the page's style has. */
const CLASSES = new Set(
  "menclose tml-cancel upstrike downstrike sout tml-xcancel tml-overline tml-underline tml-fbox tml-left tml-right tml-vec tml-prime chr-sml chr-med chr-lrg tml-sml-pad tml-med-pad tml-lrg-pad".split(
    " ",
  ),
);

const hyphenate = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

function strings(
  values: Record<string, unknown> | undefined,
  rename: (name: string) => string = (name) => name,
): Record<string, string> {
  return Object.fromEntries(
    Object.entries(values ?? {})
      .filter(([, value]) => typeof value === "string" || typeof value === "number")
      .map(([name, value]) => [rename(name), String(value)]),
  );
}
