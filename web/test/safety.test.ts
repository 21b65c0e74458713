/** Hostile text: whole and character by character it makes only listed elements, and addresses that cannot run. */
import { describe, expect, test } from "vitest";

import { parseBlocks } from "../src/markdown/blocks";
import { bareAddresses, safeUrl } from "../src/markdown/links";
import { childrenOf, type Content } from "../src/markdown/node";
import { highlight } from "../src/highlight";

const TAGS = new Set(
  "a blockquote br button code del div em h3 h4 h5 h6 hr li ol p pre span strong svg table tbody td th thead tr ul".split(
    " ",
  ),
);

const PAYLOADS = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  '<svg onload=alert(1)><a xlink:href="javascript:alert(1)">x</a></svg>',
  "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](java\tscript:alert(1))",
  "[x](&#106;avascript:alert(1)) [x](&#x6A;&#x61;vascript&colon;alert(1))",
  "[x](<javascript:alert(1)>) [x]( javascript:alert(1)) [x](\x01javascript:alert(1))",
  "[x](data:text/html;base64,PHNjcmlwdD4=) [x](vbscript:msgbox(1)) [x](file:///etc/passwd)",
  "[x](//evil.example/) [x](/chat?code=1) [x](stream)",
  '[x](https://a.example/" onclick="alert(1) "t")',
  "![x](https://evil.example/pixel.png) ![x](javascript:alert(1))",
  "[![x](javascript:alert(1))](javascript:alert(1))",
  "<javascript:alert(1)> <data:text/html,x>",
  "[x]: javascript:alert(1)\n\n[x] [y][x]",
  "[x]: https://a.example/ 'onclick=alert(1)'\n\n[x]",
  '```"><script>alert(1)</script>\nx\n```',
  "```js onclick=alert(1)\n</code></pre><script>alert(1)</script>\n```",
  '| <script> | [x](javascript:alert(1)) |\n|---|:-:" onclick=alert(1)|\n| <b onclick=alert(1)> | b |',
  "> <script>alert(1)</script>\n> - [ ] <img src=x onerror=alert(1)>",
  "# <script> [x](javascript:alert(1))",
  "$\\href{javascript:alert(1)}{x}$ \\(\\htmlClass{a}{b}\\)",
  'javascript:alert(1) www.evil.example/<script> a@b.c"onmouseover=alert(1)',
  "\u202e<script>\u2028</script>\0<b>",
];

function check(nodes: readonly Content[]): void {
  for (const node of nodes) {
    if (typeof node === "string") continue;
    expect(TAGS).toContain(node.tag);
    if (node.href !== undefined) expect(new URL(node.href).protocol).toMatch(/^(?:https?|mailto):$/);
    if (node.action !== undefined) expect(node.action).toBe("copy-code");
    expect(node.className ?? "").toMatch(/^[a-z -]*$/);
    expect(node.math).toBeUndefined();
    check(childrenOf(node));
  }
}

describe.each(PAYLOADS)("%j", (payload) => {
  test("is inert as a whole and in every beginning", () => {
    for (let end = 0; end <= payload.length; end += 1)
      check(parseBlocks(payload.slice(0, end).split("\n"), end < payload.length).blocks);
  });
});

test("code is highlighted without a change, whatever it is", () => {
  const code = 'const a = "<img src=x onerror=alert(1)>"; // </script>\n<b onclick="x">\0';
  for (const language of ["javascript", "html", "python", "json", "js", "C++"]) {
    const nodes = highlight(code, language)!;
    check(nodes);
    const text = (content: readonly Content[]): string =>
      content.map((node) => (typeof node === "string" ? node : text(childrenOf(node)))).join("");
    expect(text(nodes)).toBe(code);
  }
  for (const language of ["", "none", "__proto__", "constructor", "<script>", "toString"])
    expect(highlight(code, language)).toBeNull();
});

test.each([
  ["https://a.example/b", "https://a.example/b"],
  ["mailto:a@b.example", "mailto:a@b.example"],
  ["javascript:alert(1)", null],
  ["/relative", null],
  ["", null],
])("of %j the safe address is %j", (url, expected) => {
  expect(safeUrl(url)).toBe(expected);
});

test.each([
  ["see https://a.example/b_(c), or www.d.example.", ["https://a.example/b_(c)", "www.d.example"]],
  ["(https://a.example/b)", ["https://a.example/b"]],
  ["https://a.example?x=1&y=2;", ["https://a.example?x=1&y=2"]],
  ["ahttps://a.example", []],
  ["https://", []],
  ["请看https://a.example/b。然后", ["https://a.example/b"]],
  ["a.b+c@d-e.example, x@y", ["a.b+c@d-e.example"]],
  ["www.x", []],
])("%j has the bare addresses %j", (text, expected) => {
  expect(bareAddresses(text).map(({ start, end }) => text.slice(start, end))).toEqual(expected);
});
