/** Every text of the page is there in every language, with the same placeholders. */
import { readFileSync } from "node:fs";

import { describe, expect, test } from "vitest";

import { ENGLISH_TEXTS } from "../src/en";
import ar from "../src/i18n/ar.json";
import de from "../src/i18n/de.json";
import es from "../src/i18n/es.json";
import fr from "../src/i18n/fr.json";
import ja from "../src/i18n/ja.json";
import { preferredLanguage } from "../src/i18n";

const TABLES: Record<string, Record<string, string>> = { ar, de, es, fr, ja };
const MARKUP = readFileSync(new URL("../src/index.html", import.meta.url), "utf8");
const MARKUP_KEYS = [...MARKUP.matchAll(/data-t="([^"]*)"/g)].flatMap(([, value]) =>
  value!.split(" ").map((part) => `page.${part.split("@")[0]!}`),
);

describe.each(Object.entries(TABLES))("%s", (_, table) => {
  test("has every text", () => {
    const missing = [...Object.keys(ENGLISH_TEXTS), ...MARKUP_KEYS].filter((key) => !table[key]);
    expect(missing).toEqual([]);
  });

  test("has no text that the page does not use", () => {
    const known = new Set([...Object.keys(ENGLISH_TEXTS), ...MARKUP_KEYS]);
    expect(Object.keys(table).filter((key) => !known.has(key) && !key.startsWith("problem."))).toEqual([]);
  });

  test("has the same placeholders", () => {
    const placeholders = (text: string): string[] => [...text.matchAll(/\{\w+\}/g)].map(([found]) => found).sort();
    for (const [key, text] of Object.entries(ENGLISH_TEXTS))
      expect(placeholders(table[key]!), key).toEqual(placeholders(text));
  });

  test("has the problems of the other languages", () => {
    const problems = (texts: Record<string, string>): string[] =>
      Object.keys(texts)
        .filter((key) => key.startsWith("problem."))
        .sort();
    expect(problems(table)).toEqual(problems(de));
  });
});

test.each([
  [["de-AT", "en"], "de"],
  [["pt-BR", "fr-CA"], "fr"],
  [["zh-CN"], "en"],
  [[], "en"],
  [["ar-EG"], "ar"],
  [["__proto__", "constructor"], "en"],
])("of %j the page takes %s", (languages, expected) => {
  expect(preferredLanguage(languages)).toBe(expected);
});
