/** Blocks: markdown-it's tokens into nodes. */

import type { Token } from "markdown-it";

import { formula, parseGrowing, parseInline, type References } from "./inline";
import type { VNode } from "./node";
import { blockTokens, markdown, type PartialEnv } from "./parser";

export interface Block extends VNode {
  /** The index of the block's first line. */
  readonly line: number;
}

export interface Labels {
  readonly copy: string;
  readonly code: string;
  readonly codeIn: (language: string) => string;
  readonly table: string;
  readonly done: string;
  readonly notDone: string;
}

export const ENGLISH: Labels = {
  copy: "Copy",
  code: "Code",
  codeIn: (language) => `Code, ${language}`,
  table: "Table",
  done: "Done",
  notDone: "Not done",
};

export interface Parsed {
  readonly blocks: Block[];
  readonly references: References;
}

/** Matches a trimmed last line whose block type is not decided yet; it is not rendered until it is. */
const UNDECIDED_LINE =
  /^(?:> ?)*(?:(?:[-*+]|\d{1,9}[.)]) +)*(?:\d{1,9}[.)]?|[-*+_]{1,3}|=+|#{1,6}|`{1,3}|~{1,3}|`{3,}[^`]*|~{3,}.*|>|\||\[[ xX]?\]?|\[[^\]]*\]:?|\[[^\]]+\]: ?\S*|\\[[(]?|\${1,2}|\\b(?:e(?:g(?:in?)?)?)?|<[a-z/!?]?)?$/;

function isUndecided(lines: readonly string[]): boolean {
  const last = lines.at(-1)?.trim() ?? "";
  // A line that begins with a pipe is a table's header as soon as it has a second one.
  return UNDECIDED_LINE.test(last) || (/^\|[^|]{0,80}$/.test(last) && !/\|/.test(lines.at(-2) ?? ""));
}

/** Parses the lines of an answer, or of its end. */
export function parseBlocks(
  given: readonly string[],
  partial: boolean,
  known: References = {},
  labels: Labels = ENGLISH,
): Parsed {
  let lines = [...given];
  if (partial && isUndecided(lines)) lines.pop();
  lines = nestLists(lines);
  const { length } = lines;
  if (partial) completeTable(lines);
  const env: PartialEnv = { references: { ...known } };
  const tokens = blockTokens(lines, partial, env);
  const references = (env.references ?? {}) as References;
  const builder = new Builder(tokens, lines.slice(0, length), partial, references, labels);
  return { blocks: builder.blocks(0), references };
}

class Builder {
  private position = 0;

  constructor(
    private readonly tokens: readonly Token[],
    private readonly lines: readonly string[],
    private readonly partial: boolean,
    private readonly references: References,
    private readonly labels: Labels,
  ) {}

  /** The blocks up to the end of the container that surrounds this position. */
  blocks(depth: number): Block[] {
    const blocks: Block[] = [];
    while (this.position < this.tokens.length) {
      const token = this.tokens[this.position]!;
      this.position += 1;
      if (token.nesting < 0) break;
      if (token.type === "reference_definition") continue; // of a link, which has no text of its own
      const node = this.block(token, depth);
      const [from, to] = token.map ?? [0, 0];
      blocks.push({
        ...node,
        // Only the outermost block has `dir=auto`: it ignores the text of descendants that have a `dir` of their own.
        ...(depth && node.dir === "auto" ? { dir: "" as const } : {}),
        line: from,
        source: this.lines.slice(from, to).join("\n"),
        partial: this.reachesEnd(to),
      });
    }
    return blocks;
  }

  /** Whether more text may follow in a block whose lines end before `line`. */
  private reachesEnd(line: number): boolean {
    if (!this.partial) return false;
    for (let at = line; at < this.lines.length; at += 1) if (/\S/.test(this.lines[at]!)) return false;
    return true;
  }

  private block(token: Token, depth: number): VNode {
    switch (token.type) {
      case "paragraph_open":
        return this.leaf("p", token);
      case "heading_open":
        // Each turn has an h2 of its own, so the model's headings start at h3.
        return this.leaf(`h${Math.min(Number(token.tag.slice(1)) + 2, 6)}`, token);
      case "hr":
        return { tag: "hr" };
      case "fence":
      case "code_block":
        return this.code(token);
      case "math_block": {
        const { closed } = token.meta as { closed: boolean };
        return closed
          ? formula("div", token.content, true, token.markup)
          : { tag: "div", className: "formula display pending", children: [] };
      }
      case "blockquote_open":
        return { tag: "blockquote", dir: "auto", children: this.blocks(depth + 1) };
      case "bullet_list_open":
      case "ordered_list_open":
        return this.list(token, depth);
      case "table_open":
        return this.table(token);
      default:
        return { tag: "p", dir: "auto", children: [token.content] };
    }
  }

  private leaf(tag: string, token: Token): VNode {
    const inline = this.tokens[this.position]!;
    this.position += 2; // the content and the closing token
    const partial = this.reachesEnd(token.map?.[1] ?? 0);
    const text = inline.content;
    const node: VNode = { tag, dir: "auto", children: () => [] };
    const { references } = this;
    return {
      ...node,
      children(this: VNode) {
        if (!partial) return parseInline(text, false, references);
        const { nodes, settled } = parseGrowing(text, references, this.settled);
        if (settled) this.settled = settled;
        return nodes;
      },
    };
  }

  private code(token: Token): VNode {
    const fenced = token.type === "fence";
    const name = fenced ? (/^\S*/.exec(markdown.utils.unescapeAll(token.info).trim())?.[0] ?? "").slice(0, 40) : "";
    const text = token.content.replace(/\n$/, "");
    const growing = this.reachesEnd(token.map?.[1] ?? 0) && !(fenced && this.isClosed(token));
    const { labels } = this;
    return {
      tag: "div",
      className: "code",
      dir: "ltr",
      children: () => [
        {
          tag: "div",
          children: [
            { tag: "span", children: [name || "text"] },
            {
              tag: "button",
              className: "ghost-button",
              action: "copy-code",
              children: [
                { tag: "svg", icon: "copy" },
                { tag: "span", children: [labels.copy] },
              ],
            },
          ],
        },
        {
          tag: "pre",
          tabIndex: 0,
          role: "group",
          label: name ? labels.codeIn(name) : labels.code,
          children: [{ tag: "code", code: growing ? text : `${text}\n`, language: name, partial: growing }],
        },
      ],
    };
  }

  private isClosed(token: Token): boolean {
    const [from, to] = token.map ?? [0, 0];
    return (
      to - from > 1 &&
      new RegExp(`${token.markup[0] === "~" ? "~" : "`"}{${token.markup.length},}\\s*$`).test(this.lines[to - 1] ?? "")
    );
  }

  private list(token: Token, depth: number): VNode {
    const items: VNode[] = [];
    let loose = false;
    while (this.tokens[this.position]?.type === "list_item_open") {
      const open = this.tokens[this.position]!;
      this.position += 1;
      loose ||= this.hasVisibleParagraph();
      items.push(this.item(open, depth));
    }
    this.position += 1;
    const ordered = token.type === "ordered_list_open";
    const start = ordered ? Number(token.attrGet("start") ?? 1) : "";
    return { tag: ordered ? "ol" : "ul", className: loose ? "loose" : "", dir: "auto", start, children: items };
  }

  /** Whether the item at this position has a paragraph of its own that is not hidden: then the list is loose. */
  private hasVisibleParagraph(): boolean {
    const level = this.tokens[this.position]?.level;
    for (let at = this.position; at < this.tokens.length && this.tokens[at]!.level >= (level ?? 0); at += 1) {
      const token = this.tokens[at]!;
      if (token.type === "paragraph_open" && token.level === level) return !token.hidden;
    }
    return false;
  }

  private item(token: Token, depth: number): VNode {
    const [from, to] = token.map ?? [0, 0];
    const checkbox = this.takeCheckbox();
    const blocks = this.blocks(depth + 1);
    const common = { tag: "li", source: this.lines.slice(from, to).join("\n"), partial: this.reachesEnd(to) };
    if (checkbox === null) return { ...common, children: blocks };
    const { labels } = this;
    const mark: VNode = {
      tag: "span",
      className: checkbox ? "checkbox checked" : "checkbox",
      role: "img",
      label: checkbox ? labels.done : labels.notDone,
    };
    return { ...common, className: "task", children: [mark, ...blocks] };
  }

  /** Takes `[ ]` or `[x]` from the item's first paragraph; null when there is none. */
  private takeCheckbox(): boolean | null {
    const [open, inline] = [this.tokens[this.position], this.tokens[this.position + 1]];
    if (open?.type !== "paragraph_open" || inline?.type !== "inline") return null;
    const found = /^\[([ xX])\](?:\s+|$)/.exec(inline.content);
    if (!found) return null;
    inline.content = inline.content.slice(found[0].length);
    return found[1] !== " ";
  }

  private table(table: Token): VNode {
    const [from, to] = table.map ?? [0, 0];
    const head: VNode[] = [];
    const body: VNode[] = [];
    let rows = head;
    for (;;) {
      const token = this.tokens[this.position]!;
      this.position += 1;
      if (token.type === "table_close") break;
      if (token.type === "tbody_open") rows = body;
      if (token.type === "tr_open") rows.push(this.row(token));
    }
    const { labels } = this;
    const sections: VNode[] = [{ tag: "thead", children: head }];
    if (body.length) sections.push({ tag: "tbody", children: body });
    return {
      tag: "div",
      className: "table",
      dir: "auto",
      tabIndex: 0,
      role: "group",
      label: labels.table,
      source: this.lines.slice(from, to).join("\n"),
      children: [{ tag: "table", children: sections }],
    };
  }

  private row(open: Token): VNode {
    const [from = 0, to = 0] = open.map ?? [];
    const partial = this.reachesEnd(to);
    const cells: { token: Token; text: string }[] = [];
    for (;;) {
      const token = this.tokens[this.position]!;
      this.position += 1;
      if (token.type === "tr_close") break;
      if (token.type === "inline") cells.at(-1)!.text = token.content;
      else if (token.nesting > 0) cells.push({ token, text: "" });
    }
    const last = cells.findLastIndex((cell) => cell.text !== "");
    const { references } = this;
    return {
      tag: "tr",
      // The cells of the header are aligned by the row of delimiters below it.
      source: this.lines.slice(from, Math.max(to, from + 1) + (cells[0]?.token.tag === "th" ? 1 : 0)).join("\n"),
      partial,
      children: () =>
        cells.map(({ token, text }, column) => {
          const align = /text-align:(center|right)/.exec(String(token.attrGet("style") ?? ""))?.[1];
          return {
            tag: token.tag,
            className: align === "center" ? "align-center" : align === "right" ? "align-end" : "",
            scope: token.tag === "th" ? "col" : "",
            children: parseInline(text, partial && column === last, references),
          };
        }),
    };
  }
}

/** Adds the delimiter row to a table whose first lines are arriving, so that its header is shown as one at once. */
function completeTable(lines: string[]): void {
  const count = lines.length;
  const isHeader = (line: string | undefined): line is string => line !== undefined && /^ {0,3}\|.*\|/.test(line);
  const isText = (line: string | undefined): boolean =>
    line !== undefined && /\S/.test(line) && !/^\s{0,3}(?:#{1,6}\s|>|\|)/.test(line);
  if (isHeader(lines[count - 1]) && (count < 2 || !/\|/.test(lines[count - 2]!)) && !isText(lines[count - 2])) {
    lines.push(delimiterRow(lines[count - 1]!));
  } else if (
    count >= 2 &&
    isHeader(lines[count - 2]) &&
    /^ {0,3}\|?[-:| \t]*$/.test(lines[count - 1]!) &&
    !/\|/.test(lines[count - 3] ?? "")
  ) {
    lines[count - 1] = delimiterRow(lines[count - 2]!, lines[count - 1]!);
  }
}

function delimiterRow(header: string, given = ""): string {
  const row = header.trim().replace(/^\||(?<!\\)\|$/g, "");
  const columns = row.split(/(?<!\\)\|/).length;
  const cells = given.trim().replace(/^\|/, "").split("|");
  return `|${Array.from({ length: columns }, (_, column) => (/^\s*:?-+:?\s*$/.test(cells[column] ?? "") ? cells[column] : "-")).join("|")}|`;
}

/** Indents bullets below `1. ` by what the specification requires; models often indent them by two columns only. */
function nestLists(lines: readonly string[]): string[] {
  if (!lines.some((line) => /^ {0,3}\d{1,9}[.)] /.test(line))) return [...lines];
  let fence: string | null = null;
  let item: { indent: number; width: number; fresh: boolean } | null = null;
  let shift = 0;
  return lines.map((line) => {
    const marker = /^\s*(`{3,}|~{3,})/.exec(line)?.[1];
    const wasFenced = fence !== null;
    if (fence === null && marker) fence = marker;
    else if (fence !== null && marker && marker.startsWith(fence) && /^\s*[`~]+\s*$/.test(line)) fence = null;
    const indent = /^ */.exec(line)![0].length;
    if (!/\S/.test(line)) return line;
    const ordered = wasFenced ? null : /^( {0,3})(\d{1,9}[.)])( {1,4})(?=\S)/.exec(line);
    if (ordered && (!item || indent < item.indent + 2)) {
      item = { indent, width: ordered[0].length, fresh: true };
      shift = 0;
      return line;
    }
    if (!item) return line;
    if (!wasFenced && item.fresh && indent >= item.indent + 2 && indent < item.width && /^ *[-*+] /.test(line))
      shift = item.width - indent;
    else if (indent < item.indent + 2 && !wasFenced) {
      item = null;
      shift = 0;
      return line;
    }
    item.fresh = false;
    return shift ? " ".repeat(shift) + line : line;
  });
}
