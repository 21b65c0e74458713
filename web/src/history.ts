/** The list of the conversations on this device. */

import { type Conversation } from "./conversation";
import { currentLanguage, t } from "./i18n";
import { matches, type DeviceStore } from "./store";
import { exportJson, exportMarkdown, fileName, importJson, importMarkdown } from "./transfer";
import { $, announce, createElement, createIconButton } from "./ui";

interface Page {
  current(): Conversation;
  open(conversation: Conversation): void;
  changed(conversation: Conversation): void;
  /** Returns what brings it back. */
  removed(conversation: Conversation): () => Promise<void>;
}

const MAX_SHOWN = 200;

export class History {
  private readonly dialog = $<HTMLDialogElement>("history-dialog");
  private readonly search = $<HTMLInputElement>("search");
  private readonly list = $("conversations");
  private all: Conversation[] = [];

  constructor(
    private readonly device: DeviceStore,
    private readonly page: Page,
  ) {
    this.search.addEventListener("input", () => this.show());
    $("export-json").addEventListener("click", () => download("chat.json", "application/json", exportJson(this.all)));
    $("export-markdown").addEventListener("click", () => {
      const current = this.page.current();
      download(
        fileName(current.title, "md"),
        "text/markdown",
        exportMarkdown(current, { user: t("you"), assistant: t("answer") }),
      );
    });
    const files = $<HTMLInputElement>("import-files");
    $("import").addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      void this.importFiles([...(files.files ?? [])]);
      files.value = "";
    });
  }

  async open(): Promise<void> {
    this.search.value = "";
    $("import-result").textContent = "";
    $("history-undo").hidden = true;
    await this.refresh();
    this.dialog.showModal();
    this.search.focus();
  }

  private async refresh(): Promise<void> {
    try {
      this.all = await this.device.list();
    } catch (error) {
      console.info("The conversations on this device cannot be read.", error);
      this.all = [];
    }
    this.show();
  }

  private show(): void {
    const found = this.all.filter((each) => matches(each, this.search.value)).slice(0, MAX_SHOWN);
    this.list.replaceChildren(...found.map((each) => this.row(each)));
    const note = $("no-conversations");
    note.textContent = this.all.length ? t("noMatches") : t("noConversations");
    note.hidden = found.length > 0;
    $("export-json").setAttribute("aria-disabled", String(this.all.length === 0));
  }

  private row(conversation: Conversation): HTMLElement {
    const title = conversation.title || t("untitled");
    const date = new Date(conversation.updatedAt).toLocaleString(currentLanguage(), {
      dateStyle: "medium",
      timeStyle: "short",
    });
    const open = createElement(
      "button",
      { type: "button", className: "conversation-title" },
      createElement("span", { dir: "auto" }, title),
      createElement("small", {}, date),
    );
    open.addEventListener("click", () => {
      this.dialog.close();
      if (conversation.id !== this.page.current().id) this.page.open(conversation);
    });
    if (conversation.id === this.page.current().id) open.setAttribute("aria-current", "true");
    const pin = createIconButton(`${t(conversation.pinned ? "unpin" : "pin")}: ${title}`, "pin", () => {
      conversation.pinned = !conversation.pinned;
      void this.store(conversation);
    });
    pin.setAttribute("aria-pressed", String(conversation.pinned));
    return createElement(
      "li",
      {},
      open,
      pin,
      createIconButton(`${t("rename")}: ${title}`, "edit", () => this.rename(conversation, open)),
      createIconButton(`${t("delete")}: ${title}`, "delete", () => void this.remove(conversation)),
    );
  }

  private rename(conversation: Conversation, open: HTMLElement): void {
    const field = createElement("input", {
      className: "field",
      value: conversation.title,
      maxLength: 200,
      dir: "auto",
      ariaLabel: t("renameLabel"),
    });
    let done = false;
    const finish = (save: boolean): void => {
      if (done) return;
      done = true;
      const title = field.value.trim();
      if (save && title && title !== conversation.title) {
        Object.assign(conversation, { title, named: true });
        void this.store(conversation);
      } else this.show();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.preventDefault();
      finish(event.key === "Enter");
      this.search.focus();
    });
    field.addEventListener("blur", () => finish(true));
    open.replaceWith(field);
    field.select();
  }

  private async store(conversation: Conversation): Promise<void> {
    this.page.changed(conversation);
    await this.device.save(conversation).catch(console.info);
    await this.refresh();
  }

  private async remove(conversation: Conversation): Promise<void> {
    await this.device.remove(conversation.id).catch(console.info);
    const bringBack = this.page.removed(conversation);
    await this.refresh();
    // The page's own button is behind the dialog.
    const undo = $("history-undo");
    undo.hidden = false;
    undo.onclick = () => {
      undo.hidden = true;
      this.search.focus();
      void bringBack().then(() => this.refresh());
    };
    this.search.focus();
  }

  async importFiles(files: readonly File[]): Promise<void> {
    let count = 0,
      damaged = 0;
    for (const file of files) {
      const text = await file.text();
      const isMarkdown = /\.(?:md|markdown|txt)$/i.test(file.name) || !/^\s*[[{]/.test(text);
      const imported = isMarkdown ? importMarkdown(text, { user: t("you"), assistant: t("answer") }) : importJson(text);
      damaged += imported.damaged;
      for (const conversation of imported.conversations) {
        try {
          await this.device.save(conversation);
          count += 1;
        } catch (error) {
          console.info(error);
          damaged += 1;
        }
      }
    }
    const parts = count ? [t("imported", { n: count })] : [t("importFailed")];
    if (count && damaged) parts.push(t("importMore", { n: damaged }));
    $("import-result").textContent = parts.join(" ");
    announce(parts.join(" "));
    await this.refresh();
  }
}

function download(name: string, type: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  createElement("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
