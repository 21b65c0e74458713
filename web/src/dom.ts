/** The only place where nodes become DOM. Tags and attributes come from the page's code, never from a text; text goes into
    text nodes; every URL has passed `safeUrl`; formulas consist of listed elements and attributes. */

import { childrenOf, type Content, type VNode } from "./markdown/node";

const ATTRIBUTES = {
  className: "class",
  dir: "dir",
  role: "role",
  label: "aria-label",
  tabIndex: "tabindex",
  scope: "scope",
  action: "data-action",
  start: "start",
  href: "href",
} as const;

const MATHML = "http://www.w3.org/1998/Math/MathML";
const SVG = "http://www.w3.org/2000/svg";

/** MathML Core's elements that only show; `a`, `maction` and `semantics` with HTML inside are not among them. */
const MATH_ELEMENTS = new Set(
  "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom merror menclose msub msup msubsup munder mover munderover mmultiscripts mprescripts none mtable mtr mtd semantics annotation".split(
    " ",
  ),
);
const MATH_ATTRIBUTES = new Set(
  "display displaystyle scriptlevel mathvariant stretchy symmetric fence separator largeop movablelimits accent accentunder lspace rspace minsize maxsize form linethickness width height depth voffset columnalign rowspacing columnspacing columnlines rowlines frame rowspan columnspan notation encoding dir".split(
    " ",
  ),
);
const MATH_STYLES = new Set(
  "color background-color border border-top border-bottom border-left border-right padding padding-left padding-right padding-top padding-bottom margin margin-left margin-right text-align font-weight font-style font-size width height transform position vertical-align min-width".split(
    " ",
  ),
);

export function icon(name: string): SVGElement {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** What shows formulas and colours code; it is loaded on first use. */
export interface Renderers {
  formula(tex: string, display: boolean): VNode | null | Promise<unknown>;
  highlight(element: HTMLElement, language: string, partial: boolean): void;
}

let renderers: Renderers | null = null;
export function setRenderers(given: Renderers): void {
  renderers = given;
}

/** Formulas shown as their source: until MathML can be made, and while others take this frame's time. */
const waiting = new Map<HTMLElement, VNode>();
const FRAME_BUDGET = 6; // milliseconds of one frame in which formulas are made

let spent = 0; // of this frame's budget
let spentAt = 0;
let frame = 0;

export function showWaitingFormulas(): void {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    spent = 0;
    for (const [element, node] of waiting) {
      if (spent >= FRAME_BUDGET) break;
      waiting.delete(element);
      if (element.isConnected && !showFormula(element, node)) break;
    }
    if (waiting.size && spent > 0) showWaitingFormulas();
    document.dispatchEvent(new Event("formulas")); // the page may be longer now
  });
}

function fillFormula(element: HTMLElement, node: VNode): void {
  waiting.delete(element);
  if (performance.now() - spentAt > 16) spent = 0;
  if (spent < FRAME_BUDGET) showFormula(element, node);
  else showSource(element, node);
  if (spent >= FRAME_BUDGET) showWaitingFormulas(); // which begins the next frame's budget
}

function showSource(element: HTMLElement, node: VNode): void {
  waiting.set(element, node);
  element.replaceChildren(node.written!);
  element.classList.add("source");
}

/** Shows the formula; false when it has to wait for what makes it. */
function showFormula(element: HTMLElement, node: VNode): boolean {
  const startedAt = performance.now();
  const math = renderers?.formula(node.tex!, node.display === true) ?? null;
  if (math instanceof Promise) {
    showSource(element, node);
    return false;
  }
  element.replaceChildren(math ? createNode(math) : node.written!);
  element.classList.toggle("source", !math);
  spentAt = performance.now();
  spent += spentAt - startedAt;
  return true;
}

export function createNode(node: Content): Node {
  if (typeof node === "string") return document.createTextNode(node);
  if (node.icon) return icon(node.icon);
  if (node.math) return createMath(node);
  const element = document.createElement(node.tag);
  if (element instanceof HTMLButtonElement) element.type = "button";
  if (element instanceof HTMLAnchorElement) {
    element.target = "_blank";
    element.rel = "noopener noreferrer nofollow";
  }
  updateAttributes(element, {}, node);
  if (node.code !== undefined) {
    element.append(node.code);
    renderers?.highlight(element, node.language ?? "", node.partial === true);
  } else if (node.tex !== undefined) fillFormula(element, node);
  else for (const child of childrenOf(node)) element.append(createNode(child));
  return element;
}

function createMath(node: VNode): Node {
  if (!MATH_ELEMENTS.has(node.tag)) return document.createTextNode("");
  const element = document.createElementNS(MATHML, node.tag);
  for (const [name, value] of Object.entries(node.math ?? {}))
    if (MATH_ATTRIBUTES.has(name)) element.setAttribute(name, value);
  if (node.className) element.setAttribute("class", node.className);
  // Through the object model, as the Content-Security-Policy blocks style attributes.
  for (const [name, value] of Object.entries(node.style ?? {})) {
    if (MATH_STYLES.has(name) && !/url|image|\(/i.test(value.replace(/rgba?\(|calc\(|scale\(/gi, "")))
      element.style.setProperty(name, value);
  }
  for (const child of childrenOf(node)) element.append(createNode(child));
  return element;
}

function updateAttributes(element: Element, oldNode: Partial<VNode>, node: VNode): void {
  for (const key of Object.keys(ATTRIBUTES) as (keyof typeof ATTRIBUTES)[]) {
    const value = node[key];
    if (oldNode[key] === value) continue;
    if (value === undefined || value === "") element.removeAttribute(ATTRIBUTES[key]);
    else element.setAttribute(ATTRIBUTES[key], String(value));
  }
}

/** Updates the child nodes of `parent` from `oldNodes` to `nodes`, starting at `first`; keeps unchanged nodes. */
export function patchChildren(
  parent: Node,
  first: ChildNode | null,
  oldNodes: readonly Content[],
  nodes: readonly Content[],
): void {
  let domNode = first;
  nodes.forEach((node, index) => {
    const oldNode = oldNodes[index];
    const next = domNode?.nextSibling ?? null;
    if (domNode === null || oldNode === undefined) parent.insertBefore(createNode(node), domNode);
    else if (oldNode !== node) patch(parent, domNode, oldNode, node);
    domNode = next;
  });
  for (let extra = oldNodes.length - nodes.length; extra > 0 && domNode; extra -= 1) {
    const next: ChildNode | null = domNode.nextSibling;
    domNode.remove();
    domNode = next;
  }
}

function patch(parent: Node, domNode: ChildNode, oldNode: Content, node: Content): void {
  if (typeof node === "string" && typeof oldNode === "string") {
    const text = domNode as Text;
    if (!node.startsWith(oldNode)) text.data = node;
    else if (node.length > oldNode.length) text.appendData(node.slice(oldNode.length));
    return;
  }
  if (typeof node === "string" || typeof oldNode === "string" || isOther(oldNode, node)) {
    parent.replaceChild(createNode(node), domNode);
    return;
  }
  if (node.icon) return;
  const element = domNode as HTMLElement;
  if (node.code !== undefined) {
    patchCode(element, oldNode, node);
    return;
  }
  if (node.tex !== undefined) {
    if (node.tex !== oldNode.tex || node.display !== oldNode.display) {
      updateAttributes(element, oldNode, node);
      fillFormula(element, node);
    }
    return;
  }
  if (node.source !== undefined && node.source === oldNode.source && node.partial === oldNode.partial) {
    node.built = oldNode.built;
    node.settled = oldNode.settled;
    return;
  }
  node.settled = oldNode.settled;
  updateAttributes(element, oldNode, node);
  patchChildren(element, element.firstChild, childrenOf(oldNode), childrenOf(node));
}

/** Whether the element cannot become the new one. */
function isOther(oldNode: VNode, node: VNode): boolean {
  return (
    node.tag !== oldNode.tag ||
    node.math !== undefined ||
    (node.tex === undefined) !== (oldNode.tex === undefined) ||
    (node.code === undefined) !== (oldNode.code === undefined) ||
    (node.tag === "div" && node.className !== oldNode.className)
  );
}

/** Code grows at its end: the colours of what is shown already stay. */
function patchCode(element: HTMLElement, oldNode: VNode, node: VNode): void {
  const before = oldNode.code!,
    after = node.code!;
  if (after.startsWith(before)) {
    const added = after.slice(before.length);
    const last = element.lastChild;
    if (added && last instanceof Text) last.appendData(added);
    else if (added) element.append(added);
  } else element.replaceChildren(after);
  if (before !== after || oldNode.partial !== node.partial || oldNode.language !== node.language) {
    renderers?.highlight(element, node.language ?? "", node.partial === true);
  }
}
