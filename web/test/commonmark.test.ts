/** The examples of CommonMark 0.31.2, with the differences that the page declares. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { describe, expect, test } from "vitest";

import { parseBlocks } from "../src/markdown/blocks";
import { safeUrl } from "../src/markdown/links";
import { toHtml } from "./html";

interface Example {
  readonly number: number;
  readonly section: string;
  readonly source: string;
  readonly html: string;
}

function examples(): Example[] {
  const text = readFileSync(createRequire(import.meta.url).resolve("commonmark-spec/spec.txt"), "utf8");
  const found: Example[] = [];
  let section = "";
  for (const match of text.matchAll(/^#{1,6} +(.*)$|^`{32} example\n([\s\S]*?)^\.\n([\s\S]*?)^`{32}$/gm)) {
    if (match[1] !== undefined) section = match[1];
    else
      found.push({
        number: found.length + 1,
        section,
        source: match[2]!.replaceAll("→", "\t"),
        html: match[3]!.replaceAll("→", "\t"),
      });
  }
  return found;
}

const ALL = examples();

/** Declared: HTML is shown as text, always. */
const HAS_HTML = (example: Example): boolean =>
  example.section === "HTML blocks" ||
  example.section === "Raw HTML" ||
  /(^|[^\\`])<(?!https?:|mailto:|[\w.+-]+@)[a-zA-Z/!?][^\n]*>/.test(
    example.source.replace(/`[^`]*`/g, "").replace(/\]\s*\(?:?\s*<[^>]*>/g, "](x)"),
  );

/** What the page shows in another way, on purpose: a line break in the source is a line break; a picture is a link to it;
    no title is shown; an address that is not absolute is no link; headings are below the page's own. */
function normal(html: string): string {
  const parts = html.split(/(<pre>[\s\S]*?<\/pre>)/);
  let text = parts
    .map((part, index) =>
      index % 2
        ? part.replaceAll("\n", "␊")
        : part
            .replace(/<(br|hr) \/>/g, "<$1>")
            .replace(/\s*(<\/?(?:p|ul|ol|li|blockquote|h\d|hr|table|thead|tbody|tr|t[hd])\b[^>]*>)\s*/g, "$1")
            .replace(/<br>\n/g, "<br>")
            .replace(/^\n+|\n+$/g, "")
            .replaceAll("\n", "<br>"),
    )
    .join("")
    .replace(/<(br)>(?=<\/?(?:ul|ol|pre|blockquote|hr|h\d)\b)|(<\/(?:pre)>)<br>/g, "$2")
    .replace(/<(\/?)h[56]>/g, "<$1h4>")
    .replace(
      /<img src="([^"]*)" alt="([^"]*)"[^>]*>/g,
      (_, src: string, alt: string) => `<a href="${src}"><span>${alt || src}</span></a>`,
    )
    .replace(/<a href="([^"]*)" title="[^"]*">/g, '<a href="$1">');
  for (let before = ""; before !== text;) {
    before = text;
    text = text.replace(/<a href="([^"]*)">((?:(?!<a )[\s\S])*?)<\/a>/g, (_, href: string, label: string) => {
      const url = safeUrl(href.replaceAll("&amp;", "&"));
      return url ? `[${encodeURI(decodeURI(url))}|${label}]` : label || href;
    });
  }
  return text.trim();
}

function outcome(example: Example): { shown: string; expected: string } {
  const { blocks } = parseBlocks(example.source.replace(/\n$/, "").split("\n"), false);
  return { shown: normal(toHtml(blocks)), expected: normal(example.html) };
}

/** Declared: what differs on purpose, by number. */
const EXCEPTIONS: Readonly<Record<number, string>> = {
  201: "HTML is shown as text",
  297: "bullets below 10. are nested also where they are indented by three columns, as models write them",
  344: "HTML is shown as text",
  491: "HTML is shown as text",
  494: "HTML is shown as text",
  602: "bare addresses are links, as in GFM",
  603: "URL's parser takes a backslash for a slash",
  608: "bare addresses are links, as in GFM",
  611: "bare addresses are links, as in GFM",
  612: "bare addresses are links, as in GFM",
  642: "HTML is shown as text",
  643: "HTML is shown as text",
};

describe("CommonMark", () => {
  const counted = ALL.filter((example) => !HAS_HTML(example));

  test("all of the specification's examples are read", () => {
    expect(ALL.length).toBe(652);
    expect(counted.length).toBeGreaterThan(560);
  });

  test("at least 95 % of the examples are shown as specified", () => {
    const wrong = counted.filter((example) => {
      const { shown, expected } = outcome(example);
      return shown !== expected;
    });
    const undeclared = wrong.filter((example) => !(example.number in EXCEPTIONS));
    if (process.env["SHOW"])
      for (const example of wrong)
        console.log(example.number, example.section, JSON.stringify(example.source), outcome(example));
    console.log(`${counted.length - wrong.length} of ${counted.length}`);
    expect(undeclared.map((example) => example.number)).toEqual([]);
    expect((counted.length - wrong.length) / counted.length).toBeGreaterThanOrEqual(0.95);
  });
});
