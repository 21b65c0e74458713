/** Pictures of a message: pasted, dropped or picked, scaled down, and shown above the composer until they are sent. */

import type { Config } from "./config";
import type { Picture } from "./conversation";
import { t } from "./i18n";
import { announce, createElement, createIconButton } from "./ui";

const MAX_SIDE = 1536; // pixels
const MIN_SIDE = 384;
const MAX_PICTURES = 6;
const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

export class PictureTray {
  pictures: Picture[] = [];

  constructor(
    private readonly element: HTMLElement,
    private readonly config: Config,
    private readonly onChange: () => void,
  ) {}

  listen(field: HTMLElement, button: HTMLElement, input: HTMLInputElement): void {
    button.hidden = !this.config.pictures;
    if (!this.config.pictures) return;
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      void this.add([...(input.files ?? [])]);
      input.value = "";
    });
    field.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
      if (!files.length) return;
      event.preventDefault();
      void this.add(files);
    });
    addEventListener("dragover", (event) => {
      if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
    });
    addEventListener("drop", (event) => {
      const files = [...(event.dataTransfer?.files ?? [])];
      if (!files.length) return;
      event.preventDefault(); // the browser would leave the page and open the file
      void this.add(files);
    });
  }

  /** The pictures, which leave the tray. */
  take(): Picture[] {
    const taken = this.pictures;
    this.pictures = [];
    this.show("");
    return taken;
  }

  async add(files: readonly File[]): Promise<void> {
    const problems: string[] = [];
    for (const file of files) {
      if (this.pictures.length >= MAX_PICTURES) {
        problems.push(t("pictureTooMany", { n: MAX_PICTURES }));
        break;
      }
      if (!TYPES.includes(file.type)) {
        problems.push(t("pictureBad", { name: file.name }));
        continue;
      }
      try {
        // Base64 takes a third more, and the conversation needs room too.
        const room = this.config.maxBodyBytes * 0.7 - this.pictures.reduce((sum, { url }) => sum + url.length, 0);
        const url = await scaledDown(file, room);
        if (url === null) problems.push(t("pictureLarge", { name: file.name }));
        else this.pictures.push({ url, name: file.name.slice(0, 200) });
      } catch {
        problems.push(t("pictureBad", { name: file.name }));
      }
    }
    this.show(problems.join(" "));
  }

  private show(problem: string): void {
    this.element.replaceChildren(
      ...this.pictures.map((picture) =>
        createElement(
          "span",
          { className: "thumbnail" },
          createElement("img", { src: picture.url, alt: picture.name || t("picture") }),
          createIconButton(t("removePicture", { name: picture.name }), "close", () => {
            this.pictures = this.pictures.filter((each) => each !== picture);
            this.show("");
          }),
        ),
      ),
      ...(problem ? [createElement("p", { className: "hint" }, problem)] : []),
    );
    this.element.hidden = !this.element.firstChild;
    if (problem) announce(problem);
    this.onChange();
  }
}

/** The picture as a data URL of at most `limit` characters; null when it does not fit at a useful size. */
async function scaledDown(file: File, limit: number): Promise<string | null> {
  const bitmap = await createImageBitmap(file);
  try {
    const whole = Math.max(bitmap.width, bitmap.height);
    for (let side = Math.min(MAX_SIDE, whole); side >= Math.min(MIN_SIDE, whole); side = Math.floor(side * 0.75)) {
      const scale = side / whole;
      const canvas = createElement("canvas", {
        width: Math.max(1, Math.round(bitmap.width * scale)),
        height: Math.max(1, Math.round(bitmap.height * scale)),
      });
      canvas.getContext("2d")!.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      // Text in screenshots suffers from JPEG: PNG where it is small enough.
      for (const url of [
        file.type === "image/jpeg" ? "" : canvas.toDataURL("image/png"),
        canvas.toDataURL("image/jpeg", 0.85),
      ]) {
        if (url && url.length <= Math.min(limit, url.startsWith("data:image/png") ? 300_000 : Infinity)) return url;
      }
      if (side === Math.min(MIN_SIDE, whole)) break;
    }
    return null;
  } finally {
    bitmap.close();
  }
}
