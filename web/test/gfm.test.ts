/** GitHub Flavored Markdown's extensions, https://github.github.com/gfm/, and what models write beside them. */
import { describe, expect, test } from "vitest";

import { parseBlocks } from "../src/markdown/blocks";
import { toHtml } from "./html";

const html = (source: string, partial = false): string => toHtml(parseBlocks(source.split("\n"), partial).blocks);
const table = (head: string, body: string): string =>
  `<table><thead><tr>${head}</tr></thead>${body && `<tbody>${body}</tbody>`}</table>`;
const row = (...cells: string[]): string => `<tr>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;

test.each([
  ["a table", "| a | b |\n| --- | --- |\n| c | d |", table("<th>a</th><th>b</th>", row("c", "d"))],
  ["without outer pipes", "a | b\n-|-\nc | d", table("<th>a</th><th>b</th>", row("c", "d"))],
  [
    "with alignment",
    "| a | b | c |\n| :-- | :-: | --: |\n| 1 | 2 | 3 |",
    table(
      '<th>a</th><th class="align-center">b</th><th class="align-end">c</th>',
      '<tr><td>1</td><td class="align-center">2</td><td class="align-end">3</td></tr>',
    ),
  ],
  [
    "with an escaped pipe",
    "| a |\n| - |\n| b `\\|` c |\n| **\\|** |",
    table("<th>a</th>", row("b <code>|</code> c") + row("<strong>|</strong>")),
  ],
  ["ended by a quote", "| a |\n| - |\n| b |\n> c", `${table("<th>a</th>", row("b"))}<blockquote><p>c</p></blockquote>`],
  ["ended by a blank line", "| a |\n| - |\n| b |\nc\n\nd", `${table("<th>a</th>", row("b") + row("c"))}<p>d</p>`],
  ["whose delimiter row does not match", "| a | b |\n| - |\n| c |", "<p>| a | b |<br>| - |<br>| c |</p>"],
  [
    "with missing and excess cells",
    "| a | b |\n| - | - |\n| c |\n| d | e | f |",
    table("<th>a</th><th>b</th>", row("c", "") + row("d", "e")),
  ],
  ["without rows", "| a |\n| - |", table("<th>a</th>", "")],
  [
    "with a formula and a link",
    "| a |\n| - |\n| $x$ [b](https://a.example/) |",
    table("<th>a</th>", row('<math>$x$</math> <a href="https://a.example/">b</a>')),
  ],
])("a table %s", (_, source, expected) => {
  expect(html(source)).toBe(expected);
});

test.each([
  ["~~a~~ b", "<p><del>a</del> b</p>"],
  ["~~a\n\nb~~", "<p>~~a</p><p>b~~</p>"],
  ["~~**a** b~~", "<p><del><strong>a</strong> b</del></p>"],
  [
    "- [ ] a\n- [x] b\n- [X] c",
    '<ul><li><input type="checkbox">a</li><li><input type="checkbox" checked>b</li><li><input type="checkbox" checked>c</li></ul>',
  ],
  ["- [ ]a\n- [y] b", "<ul><li>[ ]a</li><li>[y] b</li></ul>"],
  ["www.a.example/b.", '<p><a href="http://www.a.example/b">www.a.example/b</a>.</p>'],
  ["(https://a.example/b(c))", '<p>(<a href="https://a.example/b(c)">https://a.example/b(c)</a>)</p>'],
  [
    "https://a.example/b?c=d&e=f",
    '<p><a href="https://a.example/b?c=d&amp;e=f">https://a.example/b?c=d&amp;e=f</a></p>',
  ],
  ["https://a.example/b&hl;", '<p><a href="https://a.example/b">https://a.example/b</a>&amp;hl;</p>'],
  ["`https://a.example`", "<p><code>https://a.example</code></p>"],
  ["a.b-c_d@e.f", '<p><a href="mailto:a.b-c_d@e.f">a.b-c_d@e.f</a></p>'],
  ["a.b-c_d@e.f-", "<p>a.b-c_d@e.f-</p>"],
  ["<b>a</b> <script>", "<p>&lt;b&gt;a&lt;/b&gt; &lt;script&gt;</p>"],
])("%j", (source, expected) => {
  expect(html(source)).toBe(expected);
});

test.each([
  ["**「太字」**です", "<p><strong>「太字」</strong>です</p>"],
  ["这是**“重点”**吗", "<p>这是<strong>“重点”</strong>吗</p>"],
  ["**이것(중요)**은", "<p><strong>이것(중요)</strong>은</p>"],
  ["*「a」*b", "<p><em>「a」</em>b</p>"],
  ["a**b**c", "<p>a<strong>b</strong>c</p>"],
  ["a_b_c 2*3*4", "<p>a_b_c 2<em>3</em>4</p>"],
])("emphasis in scripts without spaces: %j", (source, expected) => {
  expect(html(source)).toBe(expected);
});

describe("text that is still arriving", () => {
  test.each([
    ["a **b", "<p>a <strong>b</strong></p>"],
    ["a ***b", "<p>a <em><strong>b</strong></em></p>"],
    ["*a **b", "<p><em>a <strong>b</strong></em></p>"],
    ["a **", "<p>a </p>"],
    ["a `b", "<p>a <code>b</code></p>"],
    ["a ~~b", "<p>a <del>b</del></p>"],
    ["a [b", "<p>a </p>"],
    ["a [b](https://a.exa", "<p>a b</p>"],
    ["a [b](https://a.example/)", '<p>a <a href="https://a.example/">b</a></p>'],
    ["a ![b](https://a.exa", "<p>a b</p>"],
    ["a \\(x", "<p>a </p>"],
    ["a $x", "<p>a </p>"],
    ["a $5", "<p>a $5</p>"],
    ["a &am", "<p>a </p>"],
    ["a <https://a.exa", "<p>a </p>"],
    ["Wow!", "<p>Wow!</p>"],
    ["a\n-", "<p>a</p>"],
    ["a\n```py", "<p>a</p>"],
    ["```py\na", '<pre><code class="language-py">a</code></pre>'],
    ["```py\na\n``", '<pre><code class="language-py">a</code></pre>'],
    ["| a | **b", table("<th>a</th><th><strong>b</strong></th>", "")],
    ["| a | b |\n|--", table("<th>a</th><th>b</th>", "")],
    ["- a\n- ", "<ul><li>a</li></ul>"],
    ["[a]: https://a.ex", ""],
  ])("%j", (source, expected) => {
    expect(html(source, true)).toBe(expected);
  });

  test("a formula in a block of its own shows its place", () => {
    const [, block] = parseBlocks(["a", "", "$$", "x ="], true).blocks;
    expect(block!.className).toBe("formula display pending");
  });
});

test("deep nesting is text, and takes no stack", () => {
  const deep = html(`${"> ".repeat(3000)}x`);
  expect(deep).toContain("x");
  expect(html("*a ".repeat(5000) + "b* ".repeat(5000))).toContain("<em>");
  expect(html("- ".repeat(3000) + "x")).toContain("x");
});
