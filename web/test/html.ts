/** Nodes as HTML, and HTML in one normal form, to compare what the page shows with the specification's examples. */
import { childrenOf, type Content, type VNode } from "../src/markdown/node";

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

/** The nodes as the specification writes them: what the page adds (scrolling boxes, buttons, heading levels) left out. */
export function toHtml(nodes: readonly Content[]): string {
  return nodes.map((node) => (typeof node === "string" ? escape(node) : element(node))).join("");
}

function element(node: VNode): string {
  if (node.tex !== undefined) return `<math>${escape(node.written ?? "")}</math>`;
  if (node.className === "code") {
    const { code = "", language } = childrenOf(childrenOf(node)[1] as VNode)[0] as VNode;
    const text = code === "\n" ? "" : code;
    return `<pre><code${language ? ` class="language-${escape(language)}"` : ""}>${escape(text)}</code></pre>`;
  }
  if (node.className === "table") return toHtml(childrenOf(node));
  if (node.tag === "br") return "<br>";
  if (node.tag === "hr") return "<hr>";
  if (node.className?.startsWith("checkbox"))
    return `<input type="checkbox"${node.className.includes("checked") ? " checked" : ""}>`;
  const tight = (node.tag === "ul" || node.tag === "ol") && node.className !== "loose";
  const children = tight ? childrenOf(node).map((item) => tightItem(item as VNode)) : childrenOf(node);
  const tag = /^h[3-6]$/.test(node.tag) ? `h${Number(node.tag.slice(1)) - 2}` : node.tag;
  const attributes = [
    node.href !== undefined ? ` href="${escape(node.href)}"` : "",
    node.tag === "ol" && node.start !== 1 ? ` start="${node.start}"` : "",
    node.className?.startsWith("align-") ? ` class="${node.className}"` : "",
  ].join("");
  return `<${tag}${attributes}>${toHtml(children)}</${tag}>`;
}

const tightItem = (item: VNode): VNode => ({
  ...item,
  built: undefined,
  children: childrenOf(item).flatMap((child) =>
    typeof child !== "string" && child.tag === "p" ? childrenOf(child) : [child],
  ),
});
