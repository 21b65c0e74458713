/** Inline content: markdown-it's tokens into nodes. */

import type { Token } from "markdown-it";

import { bareAddresses, safeUrl } from "./links";
import type { Content, Settled, VNode } from "./node";
import { inlineTokens } from "./parser";

export type References = Record<string, { title: string; href: string }>;

const TAGS: Readonly<Record<string, string>> = { em_open: "em", strong_open: "strong", s_open: "del", link_open: "a" };

export function parseInline(text: string, partial: boolean, references: References): Content[] {
  const tokens = inlineTokens(text, partial, references);
  const reader = new Reader(tokens);
  const nodes = reader.read(false);
  return mergeText(nodes);
}

const MAX_NESTING = 24; // deeper emphasis is shown as text: hostile input must not overflow the stack

class Reader {
  private position = 0;
  private depth = 0;

  constructor(private readonly tokens: readonly Token[]) {}

  /** Reads up to the end of the element that surrounds this position. */
  read(inLink: boolean): Content[] {
    const nodes: Content[] = [];
    while (this.position < this.tokens.length) {
      const token = this.tokens[this.position]!;
      this.position += 1;
      if (token.nesting < 0) break;
      if (token.nesting > 0 && this.depth >= MAX_NESTING) for (const node of this.flat(token, inLink)) nodes.push(node);
      else if (token.nesting > 0) nodes.push(...this.element(token, inLink || token.type === "link_open"));
      else nodes.push(...leaf(token, inLink));
    }
    return nodes;
  }

  /** The content of an element, and the delimiters as text. */
  private flat(open: Token, inLink: boolean): Content[] {
    const nodes: Content[] = [open.markup];
    for (let level = 1; level > 0 && this.position < this.tokens.length; this.position += 1) {
      const token = this.tokens[this.position]!;
      level += token.nesting;
      if (token.nesting === 0) nodes.push(...leaf(token, inLink));
      else nodes.push(token.markup);
    }
    return nodes;
  }

  private element(token: Token, inLink: boolean): Content[] {
    this.depth += 1;
    const children = mergeText(this.read(inLink));
    this.depth -= 1;
    if (token.type !== "link_open") return [{ tag: TAGS[token.type] ?? "span", children }];
    const target = String(token.attrGet("href") ?? "");
    const href = safeUrl(target);
    const shown = children.length ? children : [target];
    if (href !== null) return [{ tag: "a", href, children: shown }];
    return token.markup === "autolink" ? ["<", ...shown, ">"] : shown;
  }
}

function leaf(token: Token, inLink: boolean): Content[] {
  switch (token.type) {
    case "text":
    case "text_special":
      return inLink || token.type === "text_special" ? [token.content] : withAddresses(token.content);
    case "softbreak":
    case "hardbreak":
      return [{ tag: "br" }];
    case "code_inline":
      return [{ tag: "code", children: [token.content] }];
    case "math":
      return [formula("span", token.content, token.block, token.markup)];
    case "image":
      return image(token, inLink);
    default:
      return [token.content];
  }
}

export function formula(tag: "span" | "div", tex: string, display: boolean, written: string): VNode {
  return { tag, className: display ? "formula display" : "formula", dir: "ltr", tex, display, written };
}

/** A picture is a link to it: showing it would tell its server that the answer was read. */
function image(token: Token, inLink: boolean): Content[] {
  const target = String(token.attrGet("src") ?? "");
  const alternative = (token.children ?? []).map(plainText).join("") || target;
  const label: VNode = { tag: "span", className: "image-link", children: [alternative] };
  const href = safeUrl(target);
  return [href === null || inLink ? label : { tag: "a", href, children: [label] }];
}

const plainText = (token: Token): string =>
  token.type === "softbreak" || token.type === "hardbreak"
    ? "\n"
    : token.children?.length
      ? token.children.map(plainText).join("")
      : token.content;

function withAddresses(text: string): Content[] {
  const addresses = bareAddresses(text);
  if (!addresses.length) return [text];
  const nodes: Content[] = [];
  let end = 0;
  for (const address of addresses) {
    if (address.start > end) nodes.push(text.slice(end, address.start));
    nodes.push({ tag: "a", href: address.href, children: [text.slice(address.start, address.end)] });
    end = address.end;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

function mergeText(nodes: readonly Content[]): Content[] {
  const merged: Content[] = [];
  for (const node of nodes) {
    if (node === "") continue;
    const last = merged.at(-1);
    if (typeof node === "string" && typeof last === "string") merged[merged.length - 1] = last + node;
    else merged.push(node);
  }
  return merged;
}

const SETTLE_AFTER = 1200; // characters of a growing paragraph
const OPEN = /[*_~`[\]<&$\\!]/;

/** Inline content that grows: what no further text can change is not parsed again. */
export function parseGrowing(
  text: string,
  references: References,
  before: Settled | undefined,
): { nodes: Content[]; settled: Settled | undefined } {
  let settled = before && text.startsWith(before.source) ? before : undefined;
  const from = settled?.source.length ?? 0;
  if (text.length - from > 2 * SETTLE_AFTER) {
    const cut = cutPosition(text, from, text.length - SETTLE_AFTER);
    if (cut > from) {
      const nodes = parseInline(text.slice(from, cut), false, references);
      // A delimiter that is still text could pair with a later one.
      if (!nodes.some((node) => typeof node === "string" && OPEN.test(node))) {
        settled = { source: text.slice(0, cut), nodes: [...(settled?.nodes ?? []), ...nodes] };
      }
    }
  }
  const rest = parseInline(text.slice(settled?.source.length ?? 0), true, references);
  return { nodes: [...(settled?.nodes ?? []), ...rest], settled };
}

/** A position between two words, so that no construct begins or ends there. */
function cutPosition(text: string, from: number, to: number): number {
  for (let position = to; position > from; position -= 1) {
    if (
      text[position - 1] === " " &&
      /[\p{L}\p{N}]/u.test(text[position - 2] ?? "") &&
      /[\p{L}\p{N}]/u.test(text[position] ?? "")
    )
      return position;
  }
  return from;
}
