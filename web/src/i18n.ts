/** The page's language: English is in the page; the others are loaded from the app. */

import { ENGLISH_TEXTS, type TextKey } from "./en";

export const LANGUAGES = {
  en: "English",
  de: "Deutsch",
  fr: "Français",
  es: "Español",
  ja: "日本語",
  ar: "العربية",
} as const;
export type Language = keyof typeof LANGUAGES;

let texts: Partial<Record<string, string>> = ENGLISH_TEXTS;
let language: Language = "en";

export const currentLanguage = (): Language => language;

/** The text for this key, with its placeholders replaced. */
export function t(key: TextKey, values: Record<string, string | number> = {}): string {
  const text = texts[key] ?? ENGLISH_TEXTS[key];
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in values ? String(values[name]) : whole));
}

/** A text that only the tables of other languages have, such as a problem's title. */
export const translated = (key: string): string | undefined => (language === "en" ? undefined : texts[key]);

/** The first of the reader's languages that the page has. */
export function preferredLanguage(languages: readonly string[]): Language {
  for (const each of languages) {
    const code = each.toLowerCase().split("-", 1)[0]!;
    if (Object.hasOwn(LANGUAGES, code)) return code as Language;
  }
  return "en";
}

/** Shows the page in this language; `load` fetches its table. */
export async function useLanguage(
  wanted: Language,
  load: (language: Language) => Promise<Record<string, string>>,
): Promise<void> {
  if (wanted !== "en") {
    try {
      texts = await load(wanted);
    } catch (error) {
      console.info("The texts in this language could not be loaded; the page is shown in English.", error);
      return;
    }
  } else texts = ENGLISH_TEXTS;
  language = wanted;
  document.documentElement.lang = wanted;
  document.documentElement.dir = wanted === "ar" ? "rtl" : "ltr";
  for (const element of document.querySelectorAll<HTMLElement>("[data-t]")) {
    for (const part of element.dataset["t"]!.split(" ")) {
      const [key, attribute = ""] = part.split("@");
      const english = ENGLISH_MARKUP.get(element) ?? {};
      ENGLISH_MARKUP.set(element, english);
      english[attribute] ??= attribute ? (element.getAttribute(attribute) ?? "") : (element.textContent ?? "");
      const text = wanted === "en" ? english[attribute] : (texts[`page.${key!}`] ?? english[attribute]);
      if (attribute) element.setAttribute(attribute, text!);
      else element.textContent = text!;
    }
  }
}

/** The texts of the markup, which is English. */
const ENGLISH_MARKUP = new WeakMap<HTMLElement, Record<string, string>>();
