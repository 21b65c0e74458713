/** Elements of the page around the answers. */

import { icon } from "./dom";

export { icon };

export function $<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

export function createElement<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string | null)[]
): HTMLElementTagNameMap[K] {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A button whose action is not called while it has `aria-disabled`. */
export function createButton(
  className: string,
  label: string,
  iconName: string,
  action: (button: HTMLButtonElement, event: MouseEvent) => void,
): HTMLButtonElement {
  const button = createElement(
    "button",
    { className, type: "button" },
    iconName ? icon(iconName) : null,
    createElement("span", {}, label),
  );
  button.addEventListener("click", (event) => {
    if (button.getAttribute("aria-disabled") !== "true") action(button, event);
  });
  return button;
}

/** A button with an icon alone; its label is for screen readers and the tooltip. */
export function createIconButton(
  label: string,
  iconName: string,
  action: (button: HTMLButtonElement) => void,
): HTMLButtonElement {
  const button = createElement(
    "button",
    { className: "ghost-button icon-button", type: "button", title: label, ariaLabel: label },
    icon(iconName),
  );
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") action(button);
  });
  return button;
}

/** Announces one message to screen readers; clearing the region first makes them repeat an identical text. */
export function announce(text: string): void {
  $("live-region").textContent = "";
  requestAnimationFrame(() => {
    $("live-region").textContent = text;
  });
}

export function fitHeight(field: HTMLTextAreaElement): void {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

export async function copyText(
  text: string,
  button: HTMLElement,
  labels: { copied: string; failed: string },
): Promise<void> {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copyWithSelection(text);
  }
  const label = button.querySelector("span")!,
    before = label.textContent;
  if (button.dataset["copied"]) return;
  button.dataset["copied"] = "yes";
  label.textContent = copied ? labels.copied : labels.failed;
  const use = button.querySelector("use")!;
  if (copied) use.setAttribute("href", "#icon-check");
  announce(label.textContent);
  setTimeout(() => {
    label.textContent = before;
    use.setAttribute("href", "#icon-copy");
    delete button.dataset["copied"];
  }, 1600);
}

/** Fallback for plain HTTP, where browsers do not provide the Clipboard API. */
function copyWithSelection(text: string): boolean {
  const field = createElement("textarea", { className: "visually-hidden", value: text, readOnly: true });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return copied;
}
