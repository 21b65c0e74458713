/** Finds formulas: `\(…\)` and `$…$` in a line, `\[…\]`, `$$…$$` and LaTeX environments as blocks. */

import type { StateBlock, StateInline } from "markdown-it";

import type { PartialEnv } from "./parser";

const MAX_LENGTH = 5000; // characters of one formula
const MAX_LINES = 200;

/** Whether the text between two dollar signs is prose, as in "$5 or 10$" or "$HOME and more$". */
export function isProse(text: string): boolean {
  const bare = text.replace(/\\[a-zA-Z]+(?:\s*\{[^{}]*\})?/g, " ");
  if (/^\s*\d/.test(text)) {
    if (/[A-Za-z]{3,}/.test(bare)) return true;
    return /[\s–—-]/.test(text) && !/[\\^_=+*/<>{}|×·]/.test(text);
  }
  return /[A-Za-z]{3,}/.test(bare) && !/[\\^_={}]/.test(text);
}

/** The inline rule; it comes before `escape`, which would take the backslash of `\(`. */
export function inlineMath(state: StateInline, silent: boolean): boolean {
  const { src, pos, posMax } = state;
  const char = src[pos];
  if (char === "\\") {
    const opening = src[pos + 1];
    if (opening !== "(" && opening !== "[") return false;
    const closing = opening === "(" ? "\\)" : "\\]";
    return take(state, silent, pos + 2, find(state, closing, pos + 2), 2, opening === "[", closing);
  }
  if (char !== "$") return false;
  if (src[pos + 1] === "$") {
    if (src[pos - 1] === "$" || src[pos - 1] === "\\") return false;
    return take(state, silent, pos + 2, find(state, "$$", pos + 2), 2, true, "$$");
  }
  if (/[A-Za-z0-9$]/.test(src[pos - 1] ?? "") || pos + 1 >= posMax) return false;
  if (/\s/.test(src[pos + 1]!)) return false;
  let end = pos + 1;
  const limit = Math.min(posMax, pos + 1000);
  while (end < limit && src[end] !== "$") end += src[end] === "\\" ? 2 : 1;
  const content = src.slice(pos + 1, Math.min(end, limit));
  if (end >= limit) {
    // Held back while it can become a formula, so that its TeX does not flash up.
    const open = limit === posMax && !silent && isPartialEnd(state) && content.length < 400;
    if (!open || /^\d/.test(content) || content.includes("`") || isProse(content)) return false;
    state.pos = posMax;
    return true;
  }
  if (content.includes("`") || /\s$/.test(content) || /[A-Za-z0-9]/.test(src[end + 1] ?? "") || isProse(content))
    return false;
  if (end + 1 === posMax && isPartialEnd(state) && /^\d/.test(content) && !silent && content.length < 12) {
    // A digit may follow: "$5-$10".
    return false;
  }
  return take(state, silent, pos + 1, end, 1, false, "$");
}

/** The position of the closing delimiter, or -1; a failed search is not repeated, which would take quadratic time. */
function find(state: StateInline, closing: string, from: number): number {
  const missing = MISSING.get(state) ?? new Set();
  if (missing.has(closing)) return -1;
  const found = state.src.indexOf(closing, from);
  if (found < 0) MISSING.set(state, missing.add(closing));
  return found;
}

const MISSING = new WeakMap<StateInline, Set<string>>();

function take(
  state: StateInline,
  silent: boolean,
  start: number,
  end: number,
  width: number,
  display: boolean,
  closing: string,
): boolean {
  const { src, posMax } = state;
  if (end < 0 || end + width > posMax || end - start > MAX_LENGTH) {
    if (silent || !isPartialEnd(state) || posMax - start > MAX_LENGTH || (end >= 0 && end + width <= posMax))
      return false;
    state.pos = posMax;
    return true;
  }
  const content = src.slice(start, end);
  if (!/[\p{L}\p{N}]/u.test(content) || (closing === "$$" && content.includes("`"))) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = content;
    token.markup = src.slice(state.pos, end + width);
    token.block = display;
  }
  state.pos = end + width;
  return true;
}

const isPartialEnd = (state: StateInline): boolean =>
  (state.env as PartialEnv).partial === true && state.posMax === state.src.length;

const ENVIRONMENT =
  /^\\begin\{((?:align|aligned|alignat|equation|gather|gathered|multline|eqnarray|cases|[bBpvV]?matrix|split|array|CD)\*?)\}/;

/** The block rule: a formula that starts a line and ends one, so that its lines are no list, heading or table. */
export function blockMath(state: StateBlock, startLine: number, endLine: number, silent: boolean): boolean {
  if (state.sCount[startLine]! - state.blkIndent >= 4) return false;
  const first = lineOf(state, startLine);
  const environment = ENVIRONMENT.exec(first)?.[1];
  const opening =
    environment !== undefined ? "" : first.startsWith("$$") ? "$$" : first.startsWith("\\[") ? "\\[" : null;
  if (opening === null) return false;
  const closing = environment !== undefined ? `\\end{${environment}}` : opening === "$$" ? "$$" : "\\]";
  const lines: string[] = [];
  let line = startLine;
  let closed = false;
  for (; line < endLine && lines.length < MAX_LINES; line += 1) {
    if (
      line > startLine &&
      ((state.sCount[line]! < state.blkIndent && !state.isEmpty(line)) || (opening !== "\\[" && state.isEmpty(line)))
    )
      break;
    const text = line === startLine ? first.slice(opening.length) : lineOf(state, line);
    const end = text.indexOf(closing);
    if (end >= 0) {
      const rest = text.slice(end + closing.length).trim();
      if (!/^[.,;:]?$/.test(rest)) return false;
      lines.push(text.slice(0, end) + rest);
      closed = true;
      line += 1;
      break;
    }
    lines.push(text);
  }
  const content = lines.join("\n");
  if (content.length > MAX_LENGTH || (closed && !/\S/.test(content))) return false;
  const env = state.env as PartialEnv;
  if (!closed && !(env.partial === true && line >= (env.lines ?? Infinity))) return false;
  if (silent) return true;
  const token = state.push("math_block", "", 0);
  token.content =
    environment !== undefined
      ? `\\begin{${environment}}${content.slice(`\\begin{${environment}}`.length)}${closing}`
      : content.trim();
  token.markup = state.getLines(startLine, line, state.blkIndent, false).trim();
  token.map = [startLine, line];
  token.meta = { closed };
  state.line = line;
  return true;
}

const lineOf = (state: StateBlock, line: number): string =>
  state.src.slice(state.bMarks[line]! + state.tShift[line]!, state.eMarks[line]);
