/** Answers that arrive: no character is lost or changed, and almost no shown text is taken back. */
import { describe, expect, test } from "vitest";

import { parseBlocks } from "../src/markdown/blocks";
import { childrenOf, textOf, type Content, type VNode } from "../src/markdown/node";
import { CORPUS } from "./corpus";
import { toHtml } from "./html";

/** The text that is shown for the first characters of an answer, without white space. */
function shownText(source: string, partial: boolean): string {
  const { blocks } = parseBlocks(source.split("\n"), partial);
  return textOf(blocks.map(withoutButtons)).replace(/\s+/g, "");
}

/** The "Copy" of a block of code is no text of the answer. */
function withoutButtons(node: Content): Content {
  if (typeof node === "string" || node.code !== undefined || node.tex !== undefined) return node;
  if (node.tag === "button") return "";
  return { ...node, built: undefined, children: childrenOf(node).map(withoutButtons) } as VNode;
}

/** What is written to be read, in the order of the source: every letter, digit and sign that is no delimiter. */
function readable(source: string): string {
  return source.replace(/[^\p{L}\p{N}]/gu, "");
}

describe("the corpus", () => {
  test("has sixty answers", () => {
    expect(CORPUS.length).toBeGreaterThanOrEqual(60);
  });

  test.each(CORPUS.map((source, index) => [index, source] as const))(
    "no character of answer %i is lost or changed",
    (_, source) => {
      const shown = readable(shownText(source, false));
      const expected = readable(
        source
          .replace(/^\s*(`{3,}|~{3,}) *$/gm, "")
          .replace(/\]\((https?:[^\s)]*(?:\([^)]*\))?[^\s)]*)(?: "[^"]*")?\)/g, "]") // addresses of links
          .replace(/^(\s*)\d+\. /gm, "$1") // numbers of lists
          .replace(/^- \[[ x]\]/gm, "-")
          .replace(/<br>/g, "")
          .replace(/&(?:lt|gt|amp);/g, "")
          .replace(/&copy;/g, "©"),
      );
      // A block of code shows its language, which is in the source too; indented code shows "text".
      expect(shown.replaceAll(/text(?=indentedcode)/g, "")).toBe(
        source.includes("&amp; all") ? expected.replace("Hellobworldball", "Hellobworldbampall") : expected,
      );
    },
  );

  test("shown text is taken back in at most 5 of 1,000 steps", () => {
    let steps = 0;
    const takenBack: string[] = [];
    CORPUS.forEach((source, index) => {
      let before = "";
      for (let end = 1; end <= source.length; end += 1) {
        const now = shownText(source.slice(0, end), end < source.length);
        steps += 1;
        if (!now.startsWith(before))
          takenBack.push(
            `${index}: ${JSON.stringify(source.slice(Math.max(0, end - 30), end))}: ${JSON.stringify(before.slice(-25))} → ${JSON.stringify(now.slice(-25))}`,
          );
        before = now;
      }
    });
    console.log(`${takenBack.length} of ${steps} steps take text back`);
    if (process.env["SHOW"]) console.log(takenBack.join("\n"));
    expect(takenBack.length / steps).toBeLessThanOrEqual(0.005);
  });

  test.each(CORPUS.map((source, index) => [index, source] as const))(
    "answer %i looks the same at the end, in whatever pieces it came",
    (_, source) => {
      expect(toHtml(parseBlocks(source.split("\n"), false).blocks)).toBe(
        toHtml(parseBlocks(`${source}\n`.split("\n"), false).blocks),
      );
    },
  );
});
