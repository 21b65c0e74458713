/** Rendered Markdown as plain objects; only `dom.ts` turns them into elements. Strings are text nodes. */
export type Content = string | VNode;

export interface VNode {
  readonly tag: string;
  readonly className?: string;
  readonly dir?: "auto" | "ltr" | "";
  readonly role?: string;
  readonly label?: string;
  readonly tabIndex?: number;
  readonly scope?: string;
  readonly action?: string;
  readonly start?: number | "";
  readonly href?: string;
  /** The name of one of the page's icons; the node has no other member then. */
  readonly icon?: string;
  /** A function is called only when the node is new or has changed. */
  readonly children?: readonly Content[] | (() => readonly Content[]);
  /** The block's Markdown: an unchanged block is not rendered again. */
  readonly source?: string;
  /** More text may follow in this block. */
  readonly partial?: boolean;
  /** A block of code: its text, which the gate shows and highlights. */
  readonly code?: string;
  readonly language?: string;
  /** A formula: TeX without its delimiters, and the Markdown that it was written as. */
  readonly tex?: string;
  readonly display?: boolean;
  readonly written?: string;
  /** MathML: attributes of a formula's element, checked by the gate. */
  readonly math?: Readonly<Record<string, string>>;
  readonly style?: Readonly<Record<string, string>>;
  /** Memory of `children`. */
  built?: readonly Content[];
  /** A growing paragraph: how much of `source` is settled, and its nodes. */
  settled?: Settled;
}

export interface Settled {
  readonly source: string;
  readonly nodes: readonly Content[];
}

export function childrenOf(node: VNode): readonly Content[] {
  node.built ??= typeof node.children === "function" ? node.children() : (node.children ?? []);
  return node.built;
}

/** The text that a reader sees, in which blocks are not separated. */
export function textOf(content: readonly Content[]): string {
  return content
    .map((each) => (typeof each === "string" ? each : (each.code ?? each.written ?? textOf(childrenOf(each)))))
    .join("");
}
