/** Formulas: what is one, and that a hostile one makes nothing but MathML. */
import { describe, expect, test } from "vitest";

import { parseBlocks } from "../src/markdown/blocks";
import { isProse } from "../src/markdown/math";
import { childrenOf, textOf, type Content, type VNode } from "../src/markdown/node";
import { toNode } from "../src/math";
import { CORPUS } from "./corpus";
import { toHtml } from "./html";

function formulas(nodes: readonly Content[]): VNode[] {
  return nodes.flatMap((node) =>
    typeof node === "string" ? [] : node.tex !== undefined ? [node] : formulas(childrenOf(node)),
  );
}
const formulasOf = (source: string): string[] =>
  formulas(parseBlocks(source.split("\n"), false).blocks).map((node) => node.tex!.trim());

test.each([
  ["\\(a+b\\) and \\[c\\]", ["a+b", "c"]],
  ["$x$, $y_1$ and ($z^2$)", ["x", "y_1", "z^2"]],
  ["设$x$为实数", ["x"]],
  ["$$\na - b\n+ c\n= d\n$$", ["a - b\n+ c\n= d"]],
  ["text\n\\[\n# 1\n> 2\n\\]\ntext", ["# 1\n> 2"]],
  ["- item:\n  $$\n  x\n  $$", ["x"]],
  ["> \\[\n> y\n> \\]", ["y"]],
  ["\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}", ["\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}"]],
  ["inline $$z$$ display", ["z"]],
  ["$2\\pi r$ and $3 + 4 = 7$ and $10$", ["2\\pi r", "3 + 4 = 7", "10"]],
  ["| $a$ | b |\n|---|---|\n| \\(c\\) | $d$ |", ["a", "c", "d"]],
  ["**bold $x$** and *\\(y\\)*", ["x", "y"]],
  ["$\\text{if } x > 0$", ["\\text{if } x > 0"]],
])("%j has the formulas %j", (source, expected) => {
  expect(formulasOf(source)).toEqual(expected);
});

test.each([
  "It costs $5, or $10 for two.",
  "From $5-$10 to $1,000–$2,000.",
  "$5 and 10$",
  "Between $1.2M and $3.4M (US$4M, A$5).",
  "echo $HOME and $PATH; $HOME/$USER",
  "`$x$` and ``\\(y\\)``",
  "    $x$ in indented code",
  "```\n$x$\n\\[y\\]\n```",
  "\\$x\\$ and \\\\(y\\\\)",
  "a $ b $ c",
  "$x $ and $ y$",
  "$5/month or 10$",
  "The price is $20.",
  "$",
  "$$",
  "\\(",
  "\\[ not closed",
  "I have $3 in my pocket, you have 5$.",
])("%j has no formula", (source) => {
  expect(formulasOf(source)).toEqual([]);
});

test("prose between dollar signs", () => {
  expect(isProse("5 and 10")).toBe(true);
  expect(isProse("5 + 10")).toBe(false);
  expect(isProse("x")).toBe(false);
  expect(isProse("\\sin x")).toBe(false);
});

describe("MathML", () => {
  const parts = (node: Content): VNode[] =>
    typeof node === "string" ? [] : [node, ...childrenOf(node).flatMap(parts)];

  test("every formula of the corpus is rendered, with its source in it", () => {
    const all = CORPUS.flatMap((source) => formulas(parseBlocks(source.split("\n"), false).blocks));
    expect(all.length).toBeGreaterThanOrEqual(28);
    for (const { tex, display } of all) {
      const node = toNode(tex!, display === true);
      expect(node, tex).not.toBeNull();
      expect(node!.tag).toBe("math");
      expect(textOf([node!])).toContain(tex!.trim());
    }
  });

  test.each([
    "\\href{javascript:alert(1)}{x}",
    "\\url{javascript:alert(1)}",
    "\\htmlClass{evil}{x}",
    "\\htmlId{evil}{x}",
    "\\htmlStyle{background:url(https://evil.example/)}{x}",
    "\\htmlData{x=y}{x}",
    "\\includegraphics{https://evil.example/pixel.png}",
    "\\def\\a{\\a\\a}\\a",
    "\\undefined",
    "{",
  ])("%j is an error, and shown as it was written", (tex) => {
    expect(toNode(tex, false)).toBeNull();
  });

  test.each([
    "\\color{url(https://evil.example/)}x",
    "\\textcolor{red;background:url(x)}{y}",
    "\\text{<img src=x onerror=alert(1)>}",
    "\\class{evil}{x}",
    "\\cssId{a}{b}",
    "\\unicode{60}script",
    "\\mathrm{<script>alert(1)</script>}",
  ])("%j makes nothing but MathML", (tex) => {
    const node = toNode(tex, true);
    for (const part of node ? parts(node) : []) {
      expect(part.tag).toMatch(/^(?:math|m[a-z]+|semantics|annotation)$/);
      expect(Object.keys(part.math ?? {}).filter((name) => /^on|href|src|^id$/.test(name))).toEqual([]);
    }
  });

  test("a formula of many nodes is not built", () => {
    expect(toNode("x+".repeat(2400) + "x", false)).toBeNull();
  });
});

test("written formulas keep their delimiters", () => {
  expect(toHtml(parseBlocks(["a \\(b\\) $c$"], false).blocks)).toBe("<p>a <math>\\(b\\)</math> <math>$c$</math></p>");
});
