/** Files that the app serves beside the page and that are loaded on first use. */

import { setRenderers, showWaitingFormulas, patchChildren } from "./dom";
import type { Language } from "./i18n";
import type { Content, VNode } from "./markdown/node";

/** The names of the files, which hold their hashes; the build fills them in. */
declare const ASSET_FILES: { math?: string; highlight?: string; languages: Partial<Record<Language, string>> };

const PAGE_PATH = location.pathname.replace(/\/+$/, "");
export const siblingUrl = (path: string): string => new URL(path, location.origin + PAGE_PATH).href;
const assetUrl = (file: string): string => siblingUrl(`chat/assets/${file}`);

interface MathModule {
  toNode(tex: string, display: boolean): VNode | null;
}
interface HighlightModule {
  highlight(code: string, language: string): Content[] | null;
}

/** Loads a module once; null when it cannot be loaded, as without a network or in an old browser. */
function once<Module>(file: string | undefined): () => Promise<Module | null> {
  let loading: Promise<Module | null> | null = null;
  return () => {
    if (file === undefined) return Promise.resolve(null);
    loading ??= (import(assetUrl(file)) as Promise<Module>).catch((error: unknown) => {
      console.info("A part of the page could not be loaded; its texts are shown as they were written.", error);
      return null;
    });
    return loading;
  };
}

const loadMath = once<MathModule>(ASSET_FILES.math);
const loadHighlight = once<HighlightModule>(ASSET_FILES.highlight);

let math: MathModule | null | undefined;
let highlighter: HighlightModule | null = null;

export async function loadLanguage(language: Language): Promise<Record<string, string>> {
  const file = ASSET_FILES.languages[language];
  if (file === undefined) throw new Error("There is no such language.");
  const response = await fetch(assetUrl(file));
  if (!response.ok) throw new Error(`The app returned ${response.status}.`);
  return (await response.json()) as Record<string, string>;
}

const MAX_HIGHLIGHTED = 30_000; // characters of a block; a longer one stays plain, so that no task takes long
const MAX_HIGHLIGHTED_GROWING = 8_000;

interface Highlighted {
  nodes: Content[];
  text: string;
  language: string;
  timer: number;
  cost: number; // milliseconds that the last highlighting took
}
const highlighted = new WeakMap<HTMLElement, Highlighted>();

function highlightSoon(element: HTMLElement, language: string, partial: boolean): void {
  const length = element.textContent.length;
  if (!language || length > (partial ? MAX_HIGHLIGHTED_GROWING : MAX_HIGHLIGHTED)) return;
  let state = highlighted.get(element);
  if (!state) highlighted.set(element, (state = { nodes: [], text: "", language, timer: 0, cost: 0 }));
  state.language = language;
  if (state.timer && partial) return;
  clearTimeout(state.timer);
  state.timer = window.setTimeout(
    () => void highlightNow(element, state),
    partial ? Math.max(300, 30 * state.cost) : 0,
  );
}

async function highlightNow(element: HTMLElement, state: Highlighted): Promise<void> {
  if (!highlighter) highlighter = await loadHighlight();
  state.timer = 0;
  if (!highlighter || !element.isConnected) return;
  const text = element.textContent;
  if (text === state.text) return;
  const startedAt = performance.now();
  const nodes = highlighter.highlight(text, state.language);
  if (!nodes) return;
  // The end of the text that came since is no longer in nodes of its own.
  const known = state.nodes;
  while (element.childNodes.length > known.length) element.lastChild!.remove();
  if (element.childNodes.length < known.length) element.replaceChildren();
  const last = known.at(-1);
  if (typeof last === "string" && element.lastChild instanceof Text) element.lastChild.data = last;
  patchChildren(element, element.firstChild, element.childNodes.length ? known : [], nodes);
  state.nodes = nodes;
  state.text = text;
  state.cost = performance.now() - startedAt;
}

/** Formulas that were made before. */
const made = new Map<string, VNode | null>();

setRenderers({
  formula(tex, display) {
    if (math === undefined) {
      return loadMath().then((module) => {
        math = module;
        showWaitingFormulas();
      });
    }
    const key = `${display ? "d" : "i"}${tex}`;
    let node = made.get(key);
    if (node === undefined) {
      node = math?.toNode(tex, display) ?? null;
      if (made.size >= 400) made.clear();
      made.set(key, node);
    }
    return node;
  },
  highlight: highlightSoon,
});
