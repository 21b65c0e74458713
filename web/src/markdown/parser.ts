/** Configures markdown-it for text that is still arriving, for formulas, and for scripts without spaces.

    `partial` means that more text may follow: unclosed constructs are then rendered as if they were closed, and what may
    still become a delimiter is held back, so that no shown text is taken back when the rest arrives. */

import MarkdownIt, { type Env, type StateBlock, type StateInline, type Token } from "markdown-it";

import { blockMath, inlineMath } from "./math";

export interface PartialEnv extends Env {
  /** More text may follow at the end of this inline content, or of these blocks. */
  partial?: boolean;
  /** The number of lines of the text. */
  lines?: number;
}

const MAX_NESTING = 60; // deeper nesting is shown as text: hostile input must not overflow the stack

export const markdown = new MarkdownIt({ html: false, linkify: false, typographer: false, maxNesting: MAX_NESTING });

// The addresses are checked where the nodes are made, by `safeUrl`.
markdown.normalizeLink = (url) => url;
markdown.normalizeLinkText = (url) => url;
markdown.validateLink = () => true;

markdown.inline.ruler.before("escape", "math", inlineMath);
markdown.inline.ruler.before("math", "hold", hold);
markdown.inline.ruler.before("backticks", "open_code", openCode);
markdown.inline.ruler.before("html_inline", "line_break", lineBreak);
markdown.inline.ruler2.after("balance_pairs", "close_open", closeOpen);
markdown.block.ruler.before("fence", "math_block", blockMath, {
  alt: ["paragraph", "reference", "blockquote", "list"],
});

const tokenizeBlocks = markdown.block.tokenize.bind(markdown.block);
markdown.block.tokenize = (state: StateBlock, startLine: number, endLine: number) => {
  if (state.level < MAX_NESTING || startLine >= endLine) {
    tokenizeBlocks(state, startLine, endLine);
    return;
  }
  const content = state.getLines(startLine, endLine, state.blkIndent, false).trim();
  state.push("paragraph_open", "p", 1).map = [startLine, endLine];
  const inline = state.push("inline", "", 0);
  inline.content = content;
  inline.map = [startLine, endLine];
  inline.children = [];
  state.push("paragraph_close", "p", -1);
  state.line = endLine;
};

const isEnd = (state: StateInline): boolean =>
  (state.env as PartialEnv).partial === true && state.posMax === state.src.length;

/** Holds back what may become a delimiter with the next characters. */
function hold(state: StateInline, silent: boolean): boolean {
  const { src, pos, posMax } = state;
  if (silent || posMax - pos > 2500 || !isEnd(state)) return false;
  const char = src[pos];
  let held = false;
  switch (char) {
    case "\\":
      held = pos + 1 === posMax;
      break;
    case "*":
    case "_":
    case "~":
      held = /^[*_~]{1,6}$/.test(src.slice(pos, posMax));
      break;
    case "$":
      held = pos + 1 === posMax;
      break;
    case "`":
      held = /^`{1,3}$/.test(src.slice(pos, posMax));
      break;
    case "&":
      held = /^&#?\w{0,31}$/.test(src.slice(pos, posMax));
      break;
    case "<":
      held = /^<(?:[a-zA-Z/!?]?|br? ?\/?|(?:https?|mailto):[^\s<>]*|htt?p?s?|mailt?o?)$/i.test(src.slice(pos, posMax));
      break;
    case "!":
    case "[": {
      const rest = src.slice(pos, posMax);
      if (char === "!" && src[pos + 1] !== "[") {
        held = rest.length === 1 && /^$|\s/.test(src[pos - 1] ?? "");
        break;
      }
      held = /^!?\[[^\]]{0,300}$/.test(rest) || /^!?\[(?:[^[\]\\]|\\.){0,500}\]$/s.test(rest);
      const link = held
        ? null
        : /^(!?\[)((?:[^[\]\\]|\\.){0,500})\]\([^\s()]*(?:\([^\s()]*\)?[^\s()]*)?(?:\s+["'(][^"'\n]*["'\)]?)?$/s.exec(
            rest,
          );
      if (link) openLink(state, pos + link[1]!.length, link[2]!.length, link[1] === "![");
      held ||= link !== null;
      break;
    }
  }
  if (held) state.pos = posMax;
  return held;
}

/** Shows the text of a link whose address is still arriving. */
function openLink(state: StateInline, start: number, length: number, image: boolean): void {
  if (image) {
    state.pending += state.src.slice(start, start + length);
    return;
  }
  const { posMax } = state;
  state.pos = start;
  state.posMax = start + length;
  state.linkLevel += 1;
  state.md.inline.tokenize(state);
  state.linkLevel -= 1;
  state.posMax = posMax;
}

/** Shows code whose closing backticks are still arriving. */
function openCode(state: StateInline, silent: boolean): boolean {
  const { src, pos, posMax } = state;
  if (silent || src[pos] !== "`" || !isEnd(state)) return false;
  let start = pos;
  while (src[start] === "`") start += 1;
  const width = start - pos;
  for (const run of src.slice(start).matchAll(/`+/g)) if (run[0].length === width) return false;
  const token = state.push("code_inline", "code", 0);
  token.markup = "`".repeat(width);
  token.content = src
    .slice(start, posMax)
    .replace(/`+$/, "")
    .replaceAll("\n", " ")
    .replace(/^ (?=\S)/, "");
  state.pos = posMax;
  return true;
}

/** `<br>`, which models write in the cells of tables. */
function lineBreak(state: StateInline, silent: boolean): boolean {
  if (state.src[state.pos] !== "<") return false;
  const found = /^<br ?\/?>/i.exec(state.src.slice(state.pos, state.pos + 6));
  if (!found) return false;
  if (!silent) state.push("hardbreak", "br", 0);
  state.pos += found[0].length;
  return true;
}

/** Closes emphasis that is still open at the end of the text. */
function closeOpen(state: StateInline): boolean {
  if ((state.env as PartialEnv).partial !== true || state.linkLevel > 0) return false;
  const { delimiters } = state;
  const open: number[] = [];
  let covered = -1;
  const count = delimiters.length;
  for (let index = 0; index < count; index += 1) {
    const delimiter = delimiters[index]!;
    if (delimiter.end > covered) covered = delimiter.end;
    else if (delimiter.open && delimiter.end < 0 && index > covered && delimiter.token < state.tokens.length - 1)
      open.push(index);
  }
  for (const index of open.reverse()) {
    const opener = delimiters[index]!;
    state.push("text", "", 0);
    opener.end = delimiters.length;
    delimiters.push({
      marker: opener.marker,
      length: 0,
      token: state.tokens.length - 1,
      end: -1,
      open: false,
      close: true,
    });
  }
  return false;
}

/** Emphasis beside characters of scripts without spaces, as in `**「强调」**的`, where CommonMark's rule finds none: a
    punctuation mark beside such a character counts as a letter beside it does. */
const CJK =
  /[\u1100-\u11ff\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffee\u{1f200}-\u{1f2ff}\u{20000}-\u{3fffd}]/u;

const scanDelims = markdown.inline.State.prototype.scanDelims;
markdown.inline.State.prototype.scanDelims = function (this: StateInline, start: number, canSplitWord: boolean) {
  const found = scanDelims.call(this, start, canSplitWord);
  if (found.can_open && found.can_close) return found;
  const before = lastCharacter(this.src, start);
  const after =
    start + found.length < this.posMax ? String.fromCodePoint(this.src.codePointAt(start + found.length)!) : "";
  if (!CJK.test(before) && !CJK.test(after)) return found;
  const spaceBefore = /^$|\s/u.test(before),
    spaceAfter = /^$|\s/u.test(after);
  const punctuation = /[\p{P}\p{S}]/u;
  const markBefore = punctuation.test(before) && !CJK.test(before),
    markAfter = punctuation.test(after) && !CJK.test(after);
  const left = !spaceAfter && (!markAfter || spaceBefore || markBefore || CJK.test(before));
  const right = !spaceBefore && (!markBefore || spaceAfter || markAfter || CJK.test(after));
  return {
    ...found,
    can_open: left && (canSplitWord || !right || punctuation.test(before)),
    can_close: right && (canSplitWord || !left || punctuation.test(after)),
  };
};

function lastCharacter(text: string, end: number): string {
  if (end === 0) return "";
  const low = text.charCodeAt(end - 1);
  return low >= 0xdc00 && low <= 0xdfff && end > 1 ? text.slice(end - 2, end) : text[end - 1]!;
}

/** The tokens of the blocks, whose inline content is parsed only when it is shown. */
export function blockTokens(lines: readonly string[], partial: boolean, env: PartialEnv): Token[] {
  const tokens: Token[] = [];
  env.partial = partial;
  env.lines = lines.length;
  markdown.block.parse(lines.join("\n").replaceAll("\0", "\ufffd"), markdown, env, tokens);
  return tokens;
}

/** The tokens of one inline content. */
export function inlineTokens(text: string, partial: boolean, references: Env["references"]): Token[] {
  const tokens: Token[] = [];
  const env: PartialEnv = { partial, references };
  markdown.inline.parse(text, markdown, env, tokens);
  return tokens;
}
